"""What is done beside the steps: looking out for trouble at each, testing and saving at each epoch's end."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from rich.text import Text

from groupwise.data import ImageBatches
from groupwise.files import replace_file
from groupwise.inference.evaluation import Evaluation, evaluate
from groupwise.inference.run_folder import DIGITS, RunFolder, copy_file
from groupwise.keras_private import moving_averages
from groupwise.models.network import Network
from groupwise.recipes import Recipe
from groupwise.training.diverging import StopTraining, check_loss, check_weights
from groupwise.training.interruption import Interruption
from groupwise.training.progress import ProgressBar
from groupwise.training.seed import seed_epoch

WORTH_SAYING = 0.05
"""From this share on it is said that training waited for its input."""


@dataclass(frozen=True)
class Judge:
    """The images that tell after each epoch how good the network is: the split's name and its batches."""

    name: str
    batches: ImageBatches


class Bookkeeper(keras.callbacks.Callback):
    """Tests, records and saves the network after each epoch; stops on Ctrl-C and on a loss that is not finite.

    Args:
        folder: of the run.
        recipe: of which the epochs, the batch size and the average are looked at.
        seed: of what is random in the network itself, such as dropout.
        batches: that are trained on.
        judge: that the network is tested on.
        bar: that shows the progress.
        interruption: that may be requested.
        rows: of metrics.csv, one a finished epoch; more are appended.

    Attributes:
        evaluation: the newest one of the judge, or None.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        seed: int,
        batches: ImageBatches,
        judge: Judge,
        bar: ProgressBar,
        interruption: Interruption,
        rows: list[dict[str, float]],
    ) -> None:
        super().__init__()
        self._folder, self._recipe, self._seed = folder, recipe, seed
        self._batches, self._judge = batches, judge
        self._bar, self._interruption, self._rows = bar, interruption, rows
        self._steps = len(batches)
        self._started = self._waited = 0.0
        self._epoch = 0
        self.evaluation: Evaluation | None = None

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.model

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        seed_epoch(self.network, self._seed, epoch)
        self._epoch = epoch
        self._started, self._waited = time.perf_counter(), self._batches.seconds_waited

    def on_train_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        check_loss(logs, self._epoch, batch)
        assert logs is not None
        if self._interruption.requested:
            raise StopTraining
        images = self._batches.images_in(batch + 1)
        seconds = time.perf_counter() - self._started
        waited = self._batches.seconds_waited - self._waited
        self._bar.update(self._epoch * self._steps + batch + 1, self._epoch + 1, logs, images, seconds, waited)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        assert logs is not None
        seconds = time.perf_counter() - self._started
        waited = self._batches.seconds_waited - self._waited
        if self._recipe.average:
            swap_average(self.network)
        try:
            evaluation = evaluate(self.network, self._judge.batches, self._recipe.batch_size)
            if not math.isfinite(evaluation.loss):
                raise StopTraining(f"the loss of the {self._judge.name} images became {evaluation.loss}")
            check_weights(self.network, epoch)
            self.evaluation = evaluation
            row = {
                "epoch": epoch + 1,
                "learning_rate": float(self.network.optimizer.learning_rate),
                "loss": logs["loss"],
                "accuracy": logs["accuracy"],
                f"{self._judge.name}_loss": evaluation.loss,
                f"{self._judge.name}_accuracy": evaluation.top1,
                "seconds": seconds,
                "images_per_second": self._batches.images_in(self._steps) / seconds,
                "share_waited": min(waited / seconds, 1.0),
            }
            self._save(row)
        finally:
            if self._recipe.average:
                swap_average(self.network)
        self._bar.say(self._line(row))
        if self._interruption.requested and epoch + 1 < self._recipe.epochs:
            raise StopTraining

    def _save(self, row: dict[str, float]) -> None:
        """Save the network and the row. last.keras comes last: what it holds decides where a resumed run begins."""
        # As a resumed run reads it: of equal accuracies the first is the best, in both.
        row = {name: float(f"{value:.{DIGITS}g}") for name, value in row.items()}
        accuracy = f"{self._judge.name}_accuracy"
        is_best = all(row[accuracy] > earlier[accuracy] for earlier in self._rows)
        rows = [*self._rows, row]

        def save(partial: Any) -> None:
            self.network.save(partial)
            if is_best:
                copy_file(partial, self._folder.best)
            self._folder.write_metrics(rows)

        replace_file(self._folder.last, save)
        self._rows.append(row)  # now that the file holds it

    def _line(self, row: Mapping[str, float]) -> Text:
        name, waited = self._judge.name, row["share_waited"]
        return Text.assemble(
            f"epoch {row['epoch']:>{len(str(self._recipe.epochs))}.0f}/{self._recipe.epochs}  "
            f"accuracy {row['accuracy']:.2%}  loss {row['loss']:.4f}  {name} accuracy ",
            (f"{row[f'{name}_accuracy']:.2%}", "bold"),
            f"  loss {row[f'{name}_loss']:.4f}  {row['images_per_second']:,.0f} images/s",
            "" if waited < WORTH_SAYING else f", {waited:.0%} of the time waiting for images",
        )


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
