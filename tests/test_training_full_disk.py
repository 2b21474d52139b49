"""A disk that is full, or a folder that is gone, while a training writes: it goes on, and its books are true."""

import errno
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from groupwise.data import Dataset
from groupwise.errors import UserError
from groupwise.inference import evaluation, load_network
from groupwise.inference.evaluation import Evaluation
from groupwise.training import bookkeeper, distribution, read_plan
from groupwise.training import checkpoints as files
from groupwise.training.checkpoints import Checkpoint
from groupwise.training.events import EpochEnded, Event, Noted
from groupwise.training.workspace import Workspace, copy_file
from tests import tiny as bars
from tests.test_checkpoints import MANY, begin, newest, resume

pytestmark = pytest.mark.once

tiny = bars.tiny
RECIPE = replace(MANY, epochs=5)


def notes(seen: list[Event]) -> list[str]:
    return [str(event) for event in seen if isinstance(event, Noted)]


def assert_books_are_true(folder: Path, dataset: Dataset) -> None:
    """Each file is of the epoch that the books say it is of."""
    rows, summary = Workspace(folder).read_metrics(), json.loads((folder / "summary.json").read_text())
    best = max(int(row["epoch"]) for row in rows if row["best"])
    assert summary["best_epoch"] == best
    assert summary["best_accuracy"] == rows[best - 1]["test_accuracy"]
    assert evaluation.accuracy(load_network(folder / "best.keras"), dataset, 16) == summary["best_accuracy"]


def after(epoch: int, happens: Callable[[], object], seen: list[Event]) -> Callable[[Event], None]:
    """Return an observer that lets something happen after an epoch."""

    def observe(event: Event) -> None:
        seen.append(event)
        if isinstance(event, EpochEnded) and event.epoch == epoch:
            happens()

    return observe


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of files' sizes")
def test_files_that_may_not_grow_are_left_as_they_were(tiny: str, tmp_path: Path) -> None:
    import resource

    before, seen = resource.getrlimit(resource.RLIMIT_FSIZE), list[Event]()

    def observe(event: Event) -> None:
        seen.append(event)
        if isinstance(event, EpochEnded) and event.epoch in (1, 3):
            # The models and checkpoints are larger, metrics.csv is not.
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000 if event.epoch == 1 else before[0], before[1]))

    dataset, folder = bars.dataset(tmp_path), tmp_path / "run"
    try:
        summary = begin(dataset, folder, RECIPE, observer=observe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert summary.epochs == 5
    said = notes(seen)
    for name in ("last.keras", "step-000000012.safetensors", "step-000000018.safetensors"):
        found = [text for text in said if f"{name} cannot be written: file too large; the training goes on" in text]
        assert len(found) == (2 if name == "last.keras" else 1), name
    assert len(Workspace(folder).read_metrics()) == 5
    assert newest(folder).step == 30
    assert not list(folder.rglob(".partial-*"))
    assert_books_are_true(folder, dataset)


@pytest.mark.parametrize(("name", "best", "rows"), [("last.keras", 5, 5), ("best.keras", 1, 5), ("metrics.csv", 5, 1)])
def test_a_full_disk_leaves_out_a_file(
    name: str, best: int, rows: int, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os_replace, tried, seen = os.replace, list[str](), list[Event]()

    def full(source: Path, target: Path) -> None:
        tried.append(target.name)
        if target.name == name and tried.count(name) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        os_replace(source, target)

    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr(distribution, "evaluate", of_accuracies(0.3, 0.4, 0.5, 0.4, 0.6))
    folder = tmp_path / "run"
    summary = begin(bars.dataset(tmp_path), folder, RECIPE, observer=seen.append)
    assert (summary.epochs, summary.best_epoch, len(read_all(folder))) == (5, best, rows)
    assert (
        f"{folder / name} cannot be written: no space left on device; the training goes on, and what" in notes(seen)[0]
    )


def read_all(folder: Path) -> list[dict[str, float]]:
    return Workspace(folder).read_metrics()


def of_accuracies(*accuracies: float) -> Callable[..., Evaluation]:
    """Return an evaluation that finds these accuracies, one after the other."""
    left = list(accuracies)
    return lambda *arguments, **options: replace(evaluation.evaluate(*arguments, **options), top1=left.pop(0))


def test_what_could_not_become_the_best_does_not_stand_in_the_way_of_what_is_better_than_the_file(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Event]()

    def full(source: Path, path: Path) -> None:
        if len(read_all(path.parent)) == 1:  # in the second epoch
            raise UserError(f"{path} cannot be written: no space left on device")
        copy_file(source, path)

    monkeypatch.setattr(bookkeeper, "copy_file", full)
    monkeypatch.setattr(distribution, "evaluate", of_accuracies(0.3, 0.9, 0.2, 0.5, 0.4))
    dataset, folder = bars.dataset(tmp_path), tmp_path / "run"
    summary = begin(dataset, folder, replace(RECIPE, patience=3), observer=seen.append)
    assert [row["best"] for row in read_all(folder)] == [1, 0, 0, 1, 0]
    assert (summary.best_epoch, summary.best_accuracy) == (4, 0.5)
    assert "than epoch 2: the training ends" not in "".join(notes(seen))  # it was the last one anyway


def test_a_folder_that_vanishes_and_comes_back(tiny: str, tmp_path: Path) -> None:
    dataset, folder, away, seen = bars.dataset(tmp_path), tmp_path / "run", tmp_path / "away", list[Event]()
    move_back = after(3, lambda: away.rename(folder), seen)
    move_away = after(1, lambda: folder.rename(away), [])

    def observe(event: Event) -> None:
        move_back(event)
        move_away(event)

    summary = begin(dataset, folder, RECIPE, observer=observe)
    assert summary.epochs == 5
    assert len([text for text in notes(seen) if "last.keras cannot be written: no such file or directory" in text]) == 2
    assert_books_are_true(folder, dataset)
    assert read_plan(folder).recipe.epochs == 5


def test_a_training_of_which_nothing_is_kept_any_more_ends(tiny: str, tmp_path: Path) -> None:
    dataset, folder, away, seen = bars.dataset(tmp_path), tmp_path / "run", tmp_path / "away", list[Event]()
    with pytest.raises(UserError, match=r"nothing of the last 3 epochs could be written to .*run"):
        begin(dataset, folder, replace(RECIPE, epochs=9), observer=after(2, lambda: folder.rename(away), seen))
    assert [event.epoch for event in seen if isinstance(event, EpochEnded)] == [1, 2, 3, 4]
    assert not folder.exists()
    away.rename(folder)
    assert newest(folder).step in (6, 12)  # the second was being written
    assert resume(dataset, folder).epochs == 9


def test_a_checkpoint_without_room_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(UserError, match=r"step-000000001.safetensors cannot be written: no space left on device$"):
        files.write(tmp_path, Checkpoint(1, 6, [], {}))
