"""The folder of a run: which file holds what, each written whole or not at all."""

import csv
import io
import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from groupwise.errors import UserError
from groupwise.files import PARTIAL, check_folder, locked, make_folder, remove_empty, replace_file, write_text
from groupwise.frameworks import FRAMEWORKS
from groupwise.machine import processor, usable_cores
from groupwise.texts import json_text

PACKAGES = (
    *("groupwise", "keras"),
    *(package for framework in FRAMEWORKS.values() for package in framework.packages),
    *("numpy", "pillow"),
)

DIGITS = 6  # of the numbers in metrics.csv


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files below `path`."""

    path: Path

    @property
    def recipe(self) -> Path:
        """JSON: the complete recipe, the data, the classes and the seed."""
        return self.path / "recipe.json"

    @property
    def split(self) -> Path:
        """JSON: which images are trained on and which are held back."""
        return self.path / "split.json"

    @property
    def environment(self) -> Path:
        """JSON: versions, backend, cores and processor."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """A row for each finished epoch."""
        return self.path / "metrics.csv"

    @property
    def last(self) -> Path:
        """The model after the last finished epoch, with the optimizer's state."""
        return self.path / "last.keras"

    @property
    def best(self) -> Path:
        """The model after the epoch of the best accuracy."""
        return self.path / "best.keras"

    @property
    def curves(self) -> Path:
        """Loss, accuracy and learning rate as a picture."""
        return self.path / "curves.png"

    @property
    def summary(self) -> Path:
        """JSON: what came out."""
        return self.path / "summary.json"

    @property
    def lock(self) -> Path:
        """There while a training is at work, and after one that was killed."""
        return self.path / ".lock"

    def open(self, resume: bool) -> None:
        """Check that the folder is free for a new run, or holds one to go on with.

        Raises:
            UserError: it holds something already, or nothing to resume, or cannot be written to.
        """
        check_folder(self.path, "--output")
        if self.lock.exists():
            with self.at_work():
                pass
        if resume and not self.recipe.exists():
            raise UserError(f"{self.path} holds no run to resume: it has no {self.recipe.name}")
        if not resume and self.path.exists() and any(not self._is_left_over(file) for file in self.path.iterdir()):
            held = "another run" if self.recipe.exists() else "other files"
            hint = ", or add --resume to go on with that run" if self.recipe.exists() else ""
            raise UserError(f"{self.path} already holds {held}: choose another --output{hint}")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Make the folder and keep other trainings out of it; remove what a killed one left unfinished.

        Raises:
            UserError: another training is at work there, or it cannot be written to.
        """
        made = make_folder(self.path)
        busy = f"another training is at work in {self.path}: wait for its end, or choose another --output"
        try:
            with locked(self.lock, busy):
                for file in self.path.glob(f"{PARTIAL}*"):
                    file.unlink(missing_ok=True)
                yield
        finally:
            remove_empty(made)

    def _is_left_over(self, file: Path) -> bool:
        return file == self.lock or file.name.startswith(PARTIAL)

    def discard(self) -> None:
        """Remove the files of a run that has finished no epoch."""
        for path in (self.recipe, self.split, self.environment, self.metrics, self.best, self.curves):
            path.unlink(missing_ok=True)

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv; none if there is no such file."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write metrics.csv anew: its rows are few, and it is never seen half written."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.{DIGITS}g}" for name, value in row.items()} for row in rows)
        write_text(self.metrics, text.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Replace a file by data as indented JSON, at once."""
    write_text(path, json_text(content))


def read_json(path: Path) -> Any:
    """Return the data in a JSON file. Raises UserError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def copy_file(source: Path, path: Path) -> None:
    """Replace a file by a copy of another one, at once."""
    replace_file(path, lambda partial: shutil.copyfile(source, partial))


def environment(backend: str) -> dict[str, Any]:
    """Return what a training's speed and result depend on besides its recipe."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "backend": backend,
        "versions": {"python": platform.python_version(), **versions},
        "cores": usable_cores(),
        "processor": processor(),
        "platform": platform.platform(),
        "command": ["groupwise", *sys.argv[1:]],
    }
