"""Checkpoints: a run interrupted at any step goes on to the bit; what is damaged or cannot be written is said."""

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.data import Dataset, ImageBatches
from groupwise.errors import UserError
from groupwise.interruption import SIGNALS, Interrupted
from groupwise.training import RunSummary, make_plan, read_plan, train
from groupwise.training import checkpoints as files
from groupwise.training.checkpoints import Checkpoint, Interval
from groupwise.training.events import Event, Noted, StepDone
from groupwise.training.workspace import Workspace
from tests import kills
from tests import tiny as bars
from tests.frameworks import BACKEND

tiny = bars.tiny

MANY = bars.recipe(
    epochs=3, model_arguments={"dropout": 0.2}, average=0.9, optimizer="adamw", optimizer_options={}, warm_up=0.3
)
"""A recipe in which everything that a checkpoint holds matters."""
STEPS = 6  # 96 images in batches of 16


def begin(dataset: Dataset, folder: Path, recipe: Any = MANY, **options: Any) -> RunSummary:
    return train(make_plan(dataset, "bars.npz", recipe), dataset, folder, **{"observer": lambda _: None, **options})


def resume(dataset: Dataset, folder: Path, **options: Any) -> RunSummary:
    given = {"observer": lambda _: None, **options}
    return train(read_plan(folder), dataset, folder, resume=True, **given)


def stop_at(epoch: int, step: int) -> Callable[[Event], None]:
    """Return an observer that lets a training end after the step that follows this one, as Ctrl-C does."""

    def observe(event: Event) -> None:
        if isinstance(event, StepDone) and (event.epoch, event.step) == (epoch, step):
            signal.raise_signal(signal.SIGINT)

    return observe


def newest(folder: Path) -> Checkpoint:
    checkpoint, damaged = files.newest(folder / "checkpoints")
    assert checkpoint is not None
    assert not damaged
    return checkpoint


def assert_same_end(found: Path, expected: Path) -> None:
    mine, its = newest(found), newest(expected)
    assert (mine.step, mine.arrays.keys()) == (its.step, its.arrays.keys())
    for name, array in mine.arrays.items():
        np.testing.assert_array_equal(array, its.arrays[name], err_msg=name)
    timed = {"seconds", "images_per_second", "share_waited"}
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in end.rows] for end in (mine, its)]
    assert rows[0] == rows[1]
    for name in ("last.keras", "best.keras"):
        for one, other in zip(bars.weights(found / name), bars.weights(expected / name), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.fixture
def at_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, Callable[[], object]], None]:
    """Return a function that lets something happen once, while a training asks for a batch of an epoch."""
    original = ImageBatches.batch

    def set_up(epoch: int, place: int, happens: Callable[[], object]) -> None:
        left = [True]

        def batch(batches: ImageBatches, index: int) -> Any:
            is_there = (batches.epoch, batches.first + index) == (epoch, place)
            if is_there and batches.steps == STEPS and left:
                left.clear()
                happens()
            return original(batches, index)

        monkeypatch.setattr(ImageBatches, "batch", batch)

    return set_up


def test_a_run_stopped_within_its_epochs_ends_as_one_that_was_not(tiny: str, tmp_path: Path, at_batch: Any) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "whole")
    for epoch, place in ((0, 2), (2, 3)):
        at_batch(epoch, place, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match=rf"holds the training after step \d of epoch {epoch + 1} of 3$"):
            (begin if epoch == 0 else resume)(dataset, tmp_path / "parts")
        checkpoint = newest(tmp_path / "parts")
        # TensorFlow asks for a batch in a thread of its own, while a step before it runs.
        assert (checkpoint.epoch, abs(checkpoint.first - place) <= 1) == (epoch, True)
    page = (tmp_path / "parts" / "report.html").read_text(encoding="utf-8")
    assert "the training has not come to its end" in page
    assert "2 epochs · " in page
    resume(dataset, tmp_path / "parts")
    assert "has not come to its end" not in (tmp_path / "parts" / "report.html").read_text(encoding="utf-8")
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL there")
@pytest.mark.skipif(BACKEND != "torch", reason="`python -m tests.kills` kills on every backend, and more often")
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(capsys: pytest.CaptureFixture) -> None:
    assert not kills.killed("torch", 1)
    assert capsys.readouterr().out.startswith("| torch | 1 | 1 | 2 | 72 |")


@pytest.mark.once
@pytest.mark.parametrize("number", [number for number in SIGNALS if number.name != "SIGBREAK"])
def test_every_signal_keeps_the_step_and_the_second_leaves_at_once(
    number: int, tiny: str, tmp_path: Path, at_batch: Any
) -> None:
    dataset = bars.dataset(tmp_path)
    before = [signal.getsignal(number) for number in SIGNALS]
    at_batch(0, 3, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match=r"holds the training after step [34] of epoch 1 of 3$") as caught:
        begin(dataset, tmp_path / "run")
    assert (caught.value.number, caught.value.resumable) == (number, True)
    at_batch(0, 0, lambda: list(map(signal.raise_signal, (number, number))))
    with pytest.raises(Interrupted, match="stopped: nothing was kept") as caught:
        begin(dataset, tmp_path / "new" / "run")
    assert (caught.value.number, caught.value.resumable) == (number, False)
    assert not (tmp_path / "new").exists()
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.once
def test_the_newest_stay_and_how_many_is_a_wish(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "run", checkpoint_every="2steps", checkpoints_kept=3)
    found = [files.step_of(path) for path in files.paths(tmp_path / "run" / "checkpoints")]
    assert found[0] == 3 * STEPS
    assert len(found) == 3
    with pytest.raises(UserError, match="checkpoints_kept=0: one is the least"):
        begin(dataset, tmp_path / "other", checkpoints_kept=0)
    with pytest.raises(UserError, match="checkpoint_every=often: is no interval; name a time"):
        begin(dataset, tmp_path / "other", checkpoint_every="often")


def _truncated(data: bytes) -> bytes:
    return data[:-9]


def _flipped(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 4]) + data[-39:]


@pytest.mark.once
def test_a_damaged_checkpoint_is_passed_over_and_said(tiny: str, tmp_path: Path, at_batch: Any) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "whole")
    at_batch(2, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        begin(dataset, tmp_path / "run")
    for damage in (_truncated, _flipped):
        run, seen = tmp_path / damage.__name__, list[Event]()
        shutil.copytree(tmp_path / "run", run)
        newer, older = files.paths(run / "checkpoints")
        newer.write_bytes(damage(newer.read_bytes()))
        resume(dataset, run, observer=seen.append)
        (note,) = [str(event) for event in seen if isinstance(event, Noted)]
        assert note.startswith(f"{newer} is damaged: ")
        assert note.endswith(f"the run goes on from the checkpoint before, {files.step_of(older)} steps")
        assert_same_end(run, tmp_path / "whole")
    for path in files.paths(tmp_path / "run" / "checkpoints"):
        path.write_bytes(_truncated(path.read_bytes()))
    with pytest.raises(UserError, match=r"is damaged: .*: begin a new run from what it has learnt, with weights="):
        resume(dataset, tmp_path / "run")


@pytest.mark.once
def test_a_run_without_checkpoints_is_not_begun_again_over_its_model(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "run")
    for path in files.paths(tmp_path / "run" / "checkpoints"):
        path.unlink()
    (tmp_path / "run" / "checkpoints").rmdir()
    with pytest.raises(UserError, match=r"run holds no checkpoints: begin a new run from what it has learnt"):
        resume(dataset, tmp_path / "run")


@pytest.mark.once
def test_a_checkpoint_that_cannot_be_written_stops_nothing(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, seen, write = bars.dataset(tmp_path), list[Event](), files.write

    def full(folder: Path, checkpoint: Checkpoint) -> Path:
        if checkpoint.step % STEPS:
            raise UserError(f"{folder} cannot be written: no space left on device")
        return write(folder, checkpoint)

    monkeypatch.setattr(files, "write", full)
    summary = begin(dataset, tmp_path / "run", checkpoint_every="4steps", observer=seen.append)
    assert summary.epochs == 3
    notes = [str(event) for event in seen if isinstance(event, Noted)]
    says = "no space left on device; the training goes on, and can be resumed from the checkpoint before"
    assert notes
    assert all(says in note for note in notes)


@pytest.mark.once
def test_other_images_and_other_networks_are_refused(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "run")
    checkpoint = newest(tmp_path / "run")
    folder = Workspace(tmp_path / "run").checkpoints
    files.write(folder, Checkpoint(checkpoint.step + 1, STEPS + 1, checkpoint.rows, checkpoint.arrays))
    with pytest.raises(UserError, match="has other images than when"):
        resume(dataset, tmp_path / "run")
    files.paths(folder)[0].unlink()
    first = next(iter(checkpoint.arrays))
    arrays = {f"{name}x" if name == first else name: array for name, array in checkpoint.arrays.items()}
    files.write(folder, Checkpoint(checkpoint.step + 1, STEPS, checkpoint.rows, arrays))
    with pytest.raises(UserError, match="the checkpoint is of another network, optimizer or version"):
        resume(dataset, tmp_path / "run")


@pytest.mark.once
def test_an_interrupted_epoch_s_seconds_are_all_of_it(tiny: str, tmp_path: Path, at_batch: Any) -> None:
    dataset = bars.dataset(tmp_path)
    at_batch(0, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        begin(dataset, tmp_path / "run")
    before = newest(tmp_path / "run").seconds[0]
    resume(dataset, tmp_path / "run")
    first = Workspace(tmp_path / "run").read_metrics()[0]
    assert first["seconds"] > before > 0
    assert first["images_per_second"] * first["seconds"] == pytest.approx(96)


@pytest.mark.once
@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("30s", Interval(seconds=30)),
        ("1.5 min", Interval(seconds=90)),
        ("2h", Interval(seconds=7200)),
        ("1step", Interval(steps=1)),
        ("500steps", Interval(steps=500)),
        ("never", Interval()),
    ],
)
def test_intervals(text: str, interval: Interval) -> None:
    assert Interval.of(text) == interval


@pytest.mark.once
@pytest.mark.parametrize("text", ["", "min", "0s", "0steps", "1.5steps", "-1min", "10 weeks", "10"])
def test_what_is_no_interval(text: str) -> None:
    with pytest.raises(UserError, match="is no interval"):
        Interval.of(text)
