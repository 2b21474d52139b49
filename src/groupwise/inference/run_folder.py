"""The folder of a run: which file holds what."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise.errors import UserError


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
        """A row for each finished epoch; `best` is 1 where its model became best.keras."""
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
    def checkpoints(self) -> Path:
        """A folder of what a training goes on from: its newest states, in the middle of epochs, too."""
        return self.path / "checkpoints"

    @property
    def curves(self) -> Path:
        """Loss, accuracy and learning rate as a picture."""
        return self.path / "curves.png"

    @property
    def report(self) -> Path:
        """All that is known of the run on one page."""
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        """JSON: what came out."""
        return self.path / "summary.json"

    @property
    def tensorboard(self) -> Path:
        """A folder of what TensorBoard shows, where that is wanted."""
        return self.path / "tensorboard"

    @property
    def lock(self) -> Path:
        """There while a training is at work, and after one that was killed."""
        return self.path / ".lock"


def read_json(path: Path) -> Any:
    """Return the data in a JSON file. Raises UserError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
