"""What `groupwise tune` measured on this machine: a small JSON file for each framework in the user's cache folder.

Environment variables: `GROUPWISE_TUNING=0` ignores what is stored, `GROUPWISE_CACHE` names another folder. Both are
read once a process.
"""

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from groupwise import writing
from groupwise.core import library
from groupwise.errors import UserError
from groupwise.machine import cache_folder, processor, usable_cores

MARGIN = 1.05
"""How many times as fast another algorithm must be to run instead of the built-in one."""

_THREADS = ("GROUPWISE_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


@dataclass(frozen=True)
class Choice:
    """The outcome of one measurement.

    Attributes:
        times: (algorithm, time over the shortest), the one to run first.
        built_in: the algorithm that runs without it.
        date: when, as "2026-01-31".
    """

    times: tuple[tuple[str, float], ...]
    built_in: str
    date: str

    def __post_init__(self) -> None:
        if not self.times or not all(math.isfinite(time) and time > 0 for _, time in self.times):
            raise ValueError(f"times={self.times}: must name an algorithm, each with a positive time")

    @staticmethod
    def of(times: Mapping[str, float], built_in: str) -> "Choice":
        """Return today's choice: the shortest time's, or the built-in one, where that is within MARGIN of it.

        Examples:
            >>> Choice.of({"native": 0.3, "core": 0.1}, "native").times
            (('core', 1.0), ('native', 3.0))
        """
        shortest = min(times.values())
        order = sorted(times, key=lambda name: times[name] / (MARGIN if name == built_in else 1))
        relative = tuple((name, round(times[name] / shortest, 3)) for name in order)
        return Choice(relative, built_in, date.today().isoformat())

    @property
    def algorithm(self) -> str:
        """The one to run."""
        return self.times[0][0]


@dataclass(frozen=True, eq=False)
class Tuning:
    """What is stored for one framework: a choice for each convolution or kind that was measured, by name.

    One is equal to itself alone, and so is hashed at no cost.
    """

    choices: Mapping[str, Choice]


def path(framework: str) -> Path:
    """Return where a framework's choices are stored."""
    return cache_folder() / f"tuning-{framework}.json"


@cache
def current(framework: str, version: str) -> Tuning | None:
    """Return what is stored for this machine, framework and version, read once; None where nothing is, or is wanted.

    A file that is damaged or was measured elsewhere is ignored with a warning.
    """
    if os.environ.get("GROUPWISE_TUNING", "1") == "0":
        return None
    try:
        return Tuning(read(framework, version))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        warnings.warn(
            f"{path(framework)} is ignored: {error}. Measure {framework} again with `groupwise tune`, or remove it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


@contextmanager
def ignored() -> Iterator[None]:
    """Let the built-in lists decide meanwhile; what is stored is read anew afterwards."""
    before = os.environ.get("GROUPWISE_TUNING")
    os.environ["GROUPWISE_TUNING"] = "0"
    current.cache_clear()
    try:
        yield
    finally:
        del os.environ["GROUPWISE_TUNING"]
        if before is not None:
            os.environ["GROUPWISE_TUNING"] = before
        current.cache_clear()


def read(framework: str, version: str) -> dict[str, Choice]:
    """Return the stored choices by name.

    Raises:
        FileNotFoundError: nothing is stored. OSError: the file cannot be read.
        ValueError: it is damaged, or was measured on another machine or with another version.
    """
    text = path(framework).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        measured_with = dict(content["measured_with"])
        choices = {
            name: Choice(
                tuple((algorithm, float(time)) for algorithm, time in one["times"].items()),
                str(one["built_in"]),
                str(one["date"]),
            )
            for name, one in content["choices"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("the file is damaged") from None
    for what, now in _circumstances(framework, version).items():
        then = measured_with.get(what)
        # Without the core its rows are passed over, and the other measurements hold.
        if then != now and now is not None:
            raise ValueError(f"it was measured with {what} {then or 'none'}, and this is {now}")
    return choices


def store(framework: str, version: str, choices: Mapping[str, Choice]) -> Path:
    """Add choices to those stored (which are dropped if they are not for this machine), and return the file's path.

    Raises:
        UserError: the file cannot be written.
    """
    known: dict[str, Choice] = {}
    with suppress(OSError, ValueError):
        known = read(framework, version)
    content = {
        "measured_with": _circumstances(framework, version),
        "choices": {
            name: {"times": dict(choice.times), "built_in": choice.built_in, "date": choice.date}
            for name, choice in {**known, **choices}.items()
        },
    }
    check_folder()
    writing.make_folder(cache_folder())
    writing.write_text(path(framework), json.dumps(content, indent=2) + "\n")
    current.cache_clear()
    return path(framework)


def check_folder() -> None:
    """Raise UserError where the cache folder cannot be made or written to."""
    try:
        writing.check_folder(cache_folder(), f"the cache folder {cache_folder()}")
    except UserError as error:
        raise UserError(
            f"{cache_folder()} cannot be written to: set GROUPWISE_CACHE to a folder that can ({error})"
        ) from None


def clear(frameworks: tuple[str, ...]) -> list[Path]:
    """Remove what is stored for the frameworks, and return the files that there were.

    Raises:
        UserError: one cannot be removed.
    """
    there = [path(framework) for framework in frameworks if path(framework).exists()]
    for file in there:
        try:
            file.unlink()
        except OSError as error:
            raise UserError(f"{file} cannot be removed: {error}") from error
    current.cache_clear()
    return there


def _circumstances(framework: str, version: str) -> dict[str, Any]:
    """Return what a measurement is valid for; None where it is not known."""
    try:
        own = metadata.version("groupwise")
    except metadata.PackageNotFoundError:
        own = "from its source"
    settings = [f"{name}={os.environ[name]}" for name in _THREADS if name in os.environ]
    return {
        "processor": processor(),
        "instruction set": library.instruction_set() if library.is_available() else None,
        "threads": ", ".join([str(usable_cores()), *settings]),
        "framework": f"{framework} {version}",
        "groupwise": own,
    }
