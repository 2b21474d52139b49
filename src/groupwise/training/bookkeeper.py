"""What is done beside the steps: looking out for trouble at each, testing and saving at each epoch's end."""

import math
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from groupwise.errors import UserError
from groupwise.inference.evaluation import Evaluation
from groupwise.keras_private import moving_averages
from groupwise.models.network import Network
from groupwise.training.checkpoints import Checkpoint
from groupwise.training.diverging import check_loss, check_weights
from groupwise.training.events import EpochEnded, Noted, StepDone
from groupwise.training.seed import seed_epoch
from groupwise.training.session import Session
from groupwise.training.state import restore_state
from groupwise.training.stopped import StopTraining
from groupwise.training.workspace import copy_file
from groupwise.writing import replace_file

MOST_LOST = 3
"""For so many epochs a training goes on of which nothing can be written: a disk may be emptied, a folder come back."""

FIRST_EPOCHS = 3
"""After so many a network that learns knows more than chance."""


class Bookkeeper(keras.callbacks.Callback):
    """Tests, records and saves the network after each epoch; stops on Ctrl-C and on a loss that is not finite.

    Args:
        session: that is at work; its observer is told of each step and epoch.
        resumed: what the first epoch goes on from, in its middle perhaps.

    Attributes:
        evaluation: the newest one of the judge, or None.
    """

    def __init__(self, session: Session, resumed: Checkpoint | None = None) -> None:
        super().__init__()
        self._session, self._folder, self._observer = session, session.run.folder, session.run.observer
        self._recipe, self._judge = session.run.plan.recipe, session.judge
        self._batches, self._steps = session.batches, session.batches.steps
        self._started = self._waited = 0.0
        self._epoch = self._first = self._done = 0
        self._resumed = resumed
        self._lost = 0
        self.evaluation: Evaluation | None = None

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.model

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        distribution = self._session.run.distribution
        seed_epoch(self.network, self._session.run.plan.seed, epoch, distribution.index, distribution.count)
        # On TensorFlow fit() has looked at two batches before it began, which may have been all that was left.
        self._epoch, self._first = epoch, 0 if self._resumed is None else self._resumed.first
        self._batches.epoch, self._batches.first = self._epoch, self._first
        self._done = self._first
        spent, waited = (0.0, 0.0) if self._resumed is None else self._resumed.seconds
        self._started, self._waited = time.perf_counter() - spent, self._batches.seconds_waited - waited

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and resumed.first:
            # Here, since Keras has forgotten what the epoch's first steps added up to, and PyTorch's loader has drawn.
            restore_state(self.network, resumed.arrays, self._session.run.distribution.index)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        done = self._done = self._first + batch + 1
        check_loss(logs, self._epoch, done - 1)
        assert logs is not None
        seconds, waited = self._seconds()
        step, is_requested = self._epoch * self._steps + done, False
        if done < self._steps:
            is_requested, is_due = self._session.agree(step)
            if is_requested or is_due:
                self._session.checkpoint(step, (seconds, waited))
        self._observer(
            StepDone(
                epoch=self._epoch + 1,
                step=done,
                loss=float(logs["loss"]),
                accuracy=float(logs["accuracy"]),
                images=self._batches.images_in(done),
                seconds=seconds,
                seconds_waited=waited,
            )
        )
        if is_requested:
            raise StopTraining

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert logs is not None
        seconds, waited = self._seconds()
        if self._done < self._steps:  # a callback of the user's has stopped the epoch
            self._session.checkpoint(epoch * self._steps + self._done, (seconds, waited))
            raise StopTraining
        if self._recipe.average:
            swap_average(self.network)
        try:
            evaluation = self._session.run.distribution.evaluate(self.network, self._judge.batches)
            if not math.isfinite(evaluation.loss):
                raise StopTraining(f"the loss of the {self._judge.name} images became {evaluation.loss}")
            check_weights(self.network, epoch)
            self.evaluation = evaluation
            logs |= {"val_loss": evaluation.loss, "val_accuracy": evaluation.top1}  # for callbacks of the user's
            row = {
                "epoch": epoch + 1,
                "learning_rate": float(self.network.optimizer.learning_rate),
                "loss": float(logs["loss"]),
                "accuracy": float(logs["accuracy"]),
                f"{self._judge.name}_loss": evaluation.loss,
                self._judge.accuracy: evaluation.top1,
                "seconds": seconds,
                "images_per_second": self._batches.images_in(self._steps) / seconds,
                "share_waited": min(waited / seconds, 1.0),
                "best": 0.0,
            }
            is_saved = self._save(row)
        finally:
            if self._recipe.average:
                swap_average(self.network)
        self._session.checkpoint((epoch + 1) * self._steps, (0.0, 0.0))
        self._end_where_nothing_is_kept(is_saved)
        self._observer(EpochEnded(epoch + 1, self._recipe.epochs, self._judge.name, row))
        self._warn_of_chance(evaluation)
        is_requested, _ = self._session.agree((epoch + 1) * self._steps, now=True)
        if self._session.is_over:
            self.network.stop_training = True  # which fit() looks at
            self._say_why()
        elif is_requested:
            raise StopTraining

    def _warn_of_chance(self, evaluation: Evaluation) -> None:
        """Say, once, that the first epochs have taught nothing."""
        accuracies = [row[self._judge.accuracy] for row in self._session.rows]
        counts = evaluation.confusion.sum(axis=1)
        chance = counts.max() / counts.sum()
        if len(accuracies) == FIRST_EPOCHS and max(accuracies) <= chance:
            found = f"{max(accuracies):.2%} of the {self._judge.name} images at best, where chance is {chance:.2%}"
            text = f"{FIRST_EPOCHS} epochs have taught nothing: {found}; look at the labels and at the learning rate"
            self._observer(Noted(text))

    def _say_why(self) -> None:
        """Say why the training ends where it is not at its last epoch."""
        session, patience = self._session, self._recipe.patience
        if len(session.rows) < self._recipe.epochs:
            last = f"of the last {patience} epochs none was" if patience > 1 else "the last epoch was not"
            images = f"the {self._judge.name} images"
            text = f"{last} better on {images} than epoch {session.best_epoch}: the training ends"
            self._observer(Noted(text))

    def _seconds(self) -> tuple[float, float]:
        """Return how long the epoch's steps took so far, and for how long of that there was no input."""
        return time.perf_counter() - self._started, self._batches.seconds_waited - self._waited

    def _save(self, row: dict[str, float]) -> bool:
        """Save the network and the row, and return whether the network could be.

        Where a resumed run begins is decided by the checkpoint that follows.
        """
        session, accuracy = self._session, self._judge.accuracy
        rows, kept = [*session.rows, row], session.kept_epoch
        is_best = not kept or row[accuracy] > session.rows[kept - 1][accuracy]

        def save(partial: Any) -> None:
            with self._session.run.distribution.apart():
                self.network.save(partial)
            if is_best:
                row["best"] = float(session.write(lambda: copy_file(partial, self._folder.best)))
            session.write(lambda: self._folder.write_metrics(rows))

        is_saved = session.write(lambda: replace_file(self._folder.last, save))
        if not is_saved:
            session.write(lambda: self._folder.write_metrics(rows))
        # As process 0 wrote it: which epoch's model best.keras holds must be the same in all.
        session.rows.append(session.run.distribution.first(row))
        return is_saved

    def _end_where_nothing_is_kept(self, is_saved: bool) -> None:
        """Raise UserError where neither the network nor a checkpoint could be written for several epochs."""
        is_kept = is_saved or self._session.wait_for_checkpoint()
        self._lost = 0 if is_kept else self._lost + 1
        if self._lost == MOST_LOST:
            raise UserError(f"nothing of the last {MOST_LOST} epochs could be written to {self._folder.path}")


def swap_average(network: Network) -> None:
    """Exchange the weights with their moving average, which the optimizer keeps; a second call undoes it.

    Files are saved exchanged, so that the weights in them are the averaged ones.
    """
    averages = moving_averages(network.optimizer)
    for variable, average in zip(network.trainable_variables, averages, strict=True):
        # Copied, since PyTorch's arrays are views of the variables.
        value = np.array(ops.convert_to_numpy(variable))
        variable.assign(average)
        average.assign(value)
