"""Checkpoints: all that decides how a training goes on, in a file each, written whole or not at all.

A file is one of safetensors, which every backend reads, with a checksum of what it holds: a bit that flipped on a disk
is no reason to go on from other weights. Keras's own ways know neither an epoch's steps nor PyTorch's random numbers.
"""

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from groupwise.errors import UserError, argument, first_line
from groupwise.writing import replace_file

Arrays = Mapping[str, NDArray[Any]]

_NAME = "step-{:09}.safetensors"
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Interval:
    """How often checkpoints are written beside those at each epoch's end.

    Attributes:
        seconds, steps: after so many; None: not by these.

    Examples:
        >>> Interval.of("10min").seconds, Interval.of("500steps").steps, Interval.of("never").steps
        (600.0, 500, None)
    """

    seconds: float | None = None
    steps: int | None = None

    @staticmethod
    def of(text: str) -> "Interval":
        """Return what a text says: "30s", "10min", "2h", "500steps", "never". Raises UserError for another one."""
        if text == "never":
            return Interval()
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", text)
        number, unit = found.groups() if found else ("0", "")
        if unit in _UNITS and float(number) > 0:
            return Interval(seconds=float(number) * _UNITS[unit])
        if unit in ("step", "steps") and number.isdigit() and int(number) > 0:
            return Interval(steps=int(number))
        says = "a time (30s, 10min, 2h), a number of steps (500steps), or never"
        raise UserError(f"{argument('checkpoint_every', text)}: is no interval; name {says}")


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from.

    Attributes:
        step: how many were made in all.
        steps: of one epoch.
        rows: of metrics.csv, one a finished epoch.
        arrays: the values of all variables, and random states, by name.
        seconds: that the epoch to go on with has taken, and of these without input.
    """

    step: int
    steps: int
    rows: Sequence[Mapping[str, float]]
    arrays: Arrays
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def epoch(self) -> int:
        """The epoch to go on with, from 0."""
        return self.step // self.steps

    @property
    def first(self) -> int:
        """The step of that epoch to go on with, from 0."""
        return self.step % self.steps


def write(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below a folder that exists. Raises UserError where it cannot be written."""
    values = {name: getattr(checkpoint, name) for name in ("step", "steps", "rows", "seconds")}
    content = json.dumps(values)
    metadata = {"content": content, "checksum": _checksum(content, checkpoint.arrays)}
    path = folder / _NAME.format(checkpoint.step)

    def save(partial: Path) -> None:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(dict(checkpoint.arrays), partial, metadata)
        except SafetensorError as error:
            found = re.search(r"os error (\d+)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number)) from error
        partial.chmod(mode)  # safetensors lets its owner alone read it

    replace_file(path, save)
    return path


def read(path: Path) -> Checkpoint:
    """Return the checkpoint in a file. Raises UserError where it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        if metadata["checksum"] != _checksum(metadata["content"], arrays):
            raise ValueError("its checksum is not that of what it holds")
        content = json.loads(metadata["content"])
        return Checkpoint(**{**content, "seconds": tuple(content["seconds"])}, arrays=arrays)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from error


def paths(folder: Path) -> list[Path]:
    """Return the files of checkpoints in a folder, the newest first."""
    return sorted(folder.glob(_NAME.replace("{:09}", "*")), reverse=True)


def step_of(path: Path) -> int:
    """Return how many steps a file of `paths` stands for."""
    return int(path.stem.removeprefix("step-"))


def epochs_finished(folder: Path) -> int:
    """Return how many epochs the run with checkpoints in a folder has finished, as the newest that can be read says."""
    for path in paths(folder):
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError), safe_open(path, "numpy") as file:
            return len(json.loads(file.metadata()["content"])["rows"])
    return 0


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is whole, None where there is none, and what is wrong with those after it."""
    damaged: list[str] = []
    for path in paths(folder):
        try:
            return read(path), damaged
        except UserError as error:
            damaged.append(str(error))
    return None, damaged


def _checksum(content: str, arrays: Arrays) -> str:
    found = blake2b(content.encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()
