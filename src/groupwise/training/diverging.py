"""A training that has diverged: seen in its losses and its weights."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from groupwise.training.stopped import StopTraining


def check_loss(logs: Mapping[str, float] | None, epoch: int, step: int) -> None:
    """Raise StopTraining where a step's loss is not finite. Epochs and steps are counted from 0."""
    assert logs is not None
    if not math.isfinite(logs["loss"]):
        raise StopTraining(f"the loss became {logs['loss']} in epoch {epoch + 1}, step {step + 1}")


def check_weights(network: keras.Model, epoch: int) -> None:
    """Raise StopTraining where a weight is not finite: a ReLU may turn that into zero, so that no loss tells."""
    if not all(np.isfinite(ops.convert_to_numpy(weight)).all() for weight in network.weights):
        raise StopTraining(f"weights became infinite or not a number in epoch {epoch + 1}")


class Watch(keras.callbacks.Callback):
    """Stops a training that nothing else looks after where it diverges."""

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        check_loss(logs, self._epoch, batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        check_weights(self.model, epoch)
