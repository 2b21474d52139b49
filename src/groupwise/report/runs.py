"""What a run's folder says of it, as far as it can be read."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise.errors import UserError, argument
from groupwise.inference.run_folder import RunFolder, read_json
from groupwise.writing import expanded


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        name: of the folder.
        path: of the folder.
        plan: what recipe.json holds: the recipe, the data, the classes, the seed.
        rows: of metrics.csv, one a finished epoch.
        summary: what summary.json holds; empty where there is none.
        environment: likewise, of environment.json.
        lacks: sentences on what cannot be read.
    """

    name: str
    path: Path
    plan: Mapping[str, Any]
    rows: list[dict[str, float]]
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    lacks: tuple[str, ...] = ()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The settings of the training."""
        return _table(self.plan.get("recipe"))

    @property
    def judge(self) -> str:
        """Which images it was tested on after each epoch: "validation" or "test"."""
        return "validation" if self.rows and "validation_loss" in self.rows[0] else "test"

    @property
    def settings(self) -> dict[str, Any]:
        """All that was settled before the first step, by name; those of a table as `table.name`."""
        plan = {name: self.plan.get(name) for name in ("data", "weights", "seed") if self.plan.get(name) is not None}
        flat: dict[str, Any] = {}
        for name, value in {**plan, **self.recipe}.items():
            if isinstance(value, Mapping):
                flat |= {f"{name}.{within}": each for within, each in value.items()}
            else:
                flat[name] = value
        return flat


def read_run(run: str | Path) -> RunRecord:
    """Return what a run's folder says.

    Raises:
        UserError: it is no run's folder.
    """
    folder = RunFolder(expanded(run))
    if not folder.recipe.exists():
        named = argument("runs", folder.path)
        raise UserError(f"{named}: is no run's folder, as a training leaves one: it holds no {folder.recipe.name}")
    lacks: list[str] = []
    summary = _read(folder.summary, lacks, ": the training has not come to its end")
    environment = _read(folder.environment, lacks)
    plan, name = _table(read_json(folder.recipe)), folder.path.resolve().name
    return RunRecord(name, folder.path, plan, _rows(folder.metrics, lacks), summary, environment, tuple(lacks))


def _table(content: Any) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}


def _read(path: Path, lacks: list[str], why: str = "") -> Mapping[str, Any]:
    try:
        return _table(read_json(path))
    except UserError as error:
        lacks.append(str(error) if path.exists() else f"There is no {path.name}{why}.")
        return {}


def _rows(path: Path, lacks: list[str]) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        lacks.append(f"There is no {path.name}: no epoch was finished.")
    except (OSError, ValueError, TypeError) as error:
        lacks.append(f"{path.name} cannot be read: {error}")
    return []
