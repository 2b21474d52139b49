"""The folder of a run while it is trained: free or taken, one training's alone, its files written."""

import csv
import io
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from groupwise.errors import UserError, argument
from groupwise.frameworks import FRAMEWORKS
from groupwise.inference.run_folder import RunFolder
from groupwise.machine import processor, usable_cores
from groupwise.texts import json_text
from groupwise.writing import PARTIAL, check_folder, locked, make_folder, remove_empty, replace_file, write_text

LOG = "process-{}.log"

PACKAGES = (
    *("groupwise", "keras"),
    *(package for framework in FRAMEWORKS.values() for package in framework.packages),
    *("numpy", "pillow"),
)


@dataclass(frozen=True)
class Workspace(RunFolder):
    """A run's folder to train in.

    Attributes:
        process: which of several processes works in it; the first, 0, alone writes its files.
    """

    process: int = 0

    def open(self, resume: bool) -> None:
        """Check that the folder is free for a new run, or holds one to go on with.

        Raises:
            UserError: it holds something already, or nothing to resume, or cannot be written to.
        """
        if self.process:
            return
        check_folder(self.path, argument("output", self.path))
        if self.lock.exists():
            with self.at_work():
                pass
        if resume and not self.recipe.exists():
            raise UserError(f"{self.path} holds no run to resume: it has no {self.recipe.name}")
        if not resume and self.path.exists() and any(not self._is_left_over(file) for file in self.path.iterdir()):
            is_run = self.recipe.exists()
            held = "another run" if is_run else "other files"
            hint = f", or add {argument('resume', True)} to go on with that run" if is_run else ""
            raise UserError(f"{self.path} already holds {held}: choose another {argument('output')}{hint}")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Make the folder and keep other trainings out of it; remove what a killed one left unfinished.

        Raises:
            UserError: another training is at work there, or it cannot be written to.
        """
        if self.process:
            yield
            return
        made = make_folder(self.path)
        busy = f"another training is at work in {self.path}: wait for its end, or choose another {argument('output')}"
        try:
            with locked(self.lock, busy):
                for file in (*self.path.glob(f"{PARTIAL}*"), *self.checkpoints.glob(f"{PARTIAL}*")):
                    file.unlink(missing_ok=True)
                yield
        finally:
            remove_empty(made)

    def _is_left_over(self, file: Path) -> bool:
        return file == self.lock or file.name.startswith((PARTIAL, LOG.partition("{")[0]))

    def discard(self) -> None:
        """Remove the files of a run that has finished no epoch."""
        if self.process:
            return
        for path in (self.recipe, self.split, self.environment, self.metrics, self.best, self.curves, self.report):
            path.unlink(missing_ok=True)
        for path in (self.checkpoints, self.tensorboard):
            shutil.rmtree(path, ignore_errors=True)

    def read_metrics(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv; none if there is no such file."""
        if not self.metrics.exists():
            return []
        with self.metrics.open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write metrics.csv anew: its rows are few, and it is never seen half written."""
        if self.process:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        # All digits: of two accuracies a resumed run finds the same one the higher.
        texts = ({name: repr(value) if value % 1 else str(int(value)) for name, value in row.items()} for row in rows)
        writer.writerows(texts)
        write_text(self.metrics, text.getvalue())

    def write_json(self, path: Path, content: Any) -> None:
        """Replace one of its files by data as indented JSON, at once."""
        if not self.process:
            write_text(path, json_text(content))

    @property
    def log(self) -> Path:
        """What this process has to say, where it is not the first one."""
        return self.path / LOG.format(self.process)


def copy_file(source: Path, path: Path) -> None:
    """Replace a file by a copy of another one, at once."""
    replace_file(path, lambda partial: shutil.copyfile(source, partial))


def environment(backend: str, accelerator: str | None = None) -> dict[str, Any]:
    """Return what a training's speed and result depend on besides its recipe: the card's name, too, if it has one."""
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
        "accelerator": accelerator,
        "platform": platform.platform(),
    }
