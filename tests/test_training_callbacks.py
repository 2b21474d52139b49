"""Keras's callbacks and several observers in a training."""

from pathlib import Path
from typing import Any

import keras
import pytest

from groupwise.errors import UserError
from groupwise.interruption import Interrupted
from groupwise.training.events import Event, Finished
from groupwise.training.workspace import Workspace
from tests import tiny as bars
from tests.test_checkpoints import MANY, assert_same_end, begin, newest, resume

tiny = bars.tiny


class Noting(keras.callbacks.Callback):
    """Notes what it is told, and stops at a step of the whole training."""

    def __init__(self, stop_at: int = 0) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []
        self.steps, self._stop_at = 0, stop_at

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if self.steps == self._stop_at:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(dict(logs))


def test_callbacks_see_what_is_tested_and_observers_are_many(tiny: str, tmp_path: Path) -> None:
    noting, first, second = Noting(), list[Event](), list[Event]()
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "run", MANY, observer=[first.append, second.append], callbacks=[noting])
    rows = Workspace(tmp_path / "run").read_metrics()
    assert [logs["val_accuracy"] for logs in noting.epochs] == [row["test_accuracy"] for row in rows]
    assert [logs["val_loss"] for logs in noting.epochs] == [row["test_loss"] for row in rows]
    assert noting.steps == 18
    assert first == second
    assert isinstance(first[-1], Finished)


def test_a_callback_may_stop_a_training_after_an_epoch(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    stopping = keras.callbacks.EarlyStopping(monitor="val_accuracy", mode="min", patience=1, baseline=-1.0)
    with pytest.raises(UserError, match=r"observer=EarlyStopping: is no function .* callbacks=\[...\]"):
        begin(dataset, tmp_path / "run", MANY, observer=[stopping])
    assert begin(dataset, tmp_path / "run", MANY, callbacks=stopping).epochs == 2
    assert resume(dataset, tmp_path / "run").epochs == 3
    begin(dataset, tmp_path / "whole", MANY)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_a_callback_that_stops_within_an_epoch_interrupts_it(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    with pytest.raises(Interrupted, match="step 3 of epoch 2 of 3"):
        begin(dataset, tmp_path / "run", MANY, callbacks=[Noting(stop_at=9)])
    assert newest(tmp_path / "run").step == 9
    resume(dataset, tmp_path / "run")
    begin(dataset, tmp_path / "whole", MANY)
    assert_same_end(tmp_path / "run", tmp_path / "whole")
