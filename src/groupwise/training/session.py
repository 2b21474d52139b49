"""A run at work: what belongs together from its first step to its summary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import keras

from groupwise.data import Dataset, ImageBatches, Split
from groupwise.data.record import SplitRecord
from groupwise.errors import UserError
from groupwise.inference.recorded import SPLIT
from groupwise.interruption import Interruption
from groupwise.models.network import Network
from groupwise.training.checkpoints import Checkpoint
from groupwise.training.distribution import Agreement, Distribution
from groupwise.training.events import Noted, Observer
from groupwise.training.keeping import Keeper
from groupwise.training.plan import Plan
from groupwise.training.state import copy_state
from groupwise.training.workspace import Workspace


@dataclass(frozen=True)
class Run:
    """What is to be done, on which images, where, and who is told.

    Attributes:
        plan: of it.
        dataset: its images, as it keeps to them.
        record: of which images these are.
        folder: of the run.
        observer: of its events.
        distribution: the processes and devices that it runs on.
        tests: images of further data, by its name, that the best model is tested on at the end.
        callbacks: Keras's, that fit() is given, too.
    """

    plan: Plan
    dataset: Dataset
    record: SplitRecord
    folder: Workspace
    observer: Observer
    distribution: Distribution
    tests: Mapping[str, Sequence[Split]] = field(default_factory=dict)
    callbacks: Sequence[keras.callbacks.Callback] = ()


@dataclass(frozen=True)
class Judge:
    """The images that tell after each epoch how good the network is: the split's name and its batches."""

    name: str
    batches: ImageBatches

    @property
    def accuracy(self) -> str:
        """The column of metrics.csv that chooses the best epoch."""
        return f"{self.name}_accuracy"


@dataclass(frozen=True)
class Session:
    """A run at work.

    Attributes:
        run: what is to be done.
        network: that learns.
        batches: that it is trained on.
        judge: that it is tested on after each epoch.
        keeper: of the checkpoints.
        rows: of metrics.csv, one a finished epoch; more are appended.
        interruption: that may be requested.
    """

    run: Run
    network: Network
    batches: ImageBatches
    judge: Judge
    keeper: Keeper
    rows: list[dict[str, float]] = field(default_factory=list)
    interruption: Interruption = field(default_factory=Interruption)

    @property
    def is_over(self) -> bool:
        """Whether the training is at its end: that of its epochs, or of its patience."""
        return len(self.rows) >= self.run.plan.recipe.epochs or self.is_out_of_patience

    @property
    def is_out_of_patience(self) -> bool:
        """Whether as many epochs as the recipe has patience for were no better than the best one."""
        patience = self.run.plan.recipe.patience
        return 0 < patience <= len(self.rows) - self.best_epoch

    @property
    def best_epoch(self) -> int:
        """The finished epoch of the highest accuracy, the first one of several, counted from 1; 0: there is none."""
        accuracies = [row[self.judge.accuracy] for row in self.rows]
        return accuracies.index(max(accuracies)) + 1 if accuracies else 0

    @property
    def kept_epoch(self) -> int:
        """The epoch whose model best.keras holds: the best one, but for what could not be written; 0: there is none."""
        return max((int(row["epoch"]) for row in self.rows if row["best"]), default=0)

    @cached_property
    def _agreement(self) -> Agreement:
        return Agreement(self.run.distribution)

    def agree(self, step: int, now: bool = False) -> tuple[bool, bool]:
        """Return whether the training is to end after so many steps, and whether a checkpoint is due: in all processes.

        Args:
            step: of the whole training. now: whether this is asked for by all of them.
        """
        interruption, keeper = self.interruption, self.keeper
        is_due = not self.run.folder.process and keeper.is_due(step)  # as process 0's clock and disk say
        wants = [interruption.number if interruption.requested else 0, int(is_due)]
        number, checkpoints = self._agreement.on(step, wants, now or keeper.counts(step))
        if number:
            interruption.number = number
        return bool(number), bool(checkpoints)

    def close(self) -> None:
        """End the threads, those that read images at once."""
        self.keeper.close()
        self.batches.close()
        self.judge.batches.close()

    def checkpoint(self, step: int, seconds: tuple[float, float]) -> None:
        """Keep what decides how the training goes on after so many steps; say where one could not be kept.

        Args:
            step: of the whole training. seconds: as `Checkpoint` has them.
        """
        arrays = copy_state(self.network, self.run.distribution)
        if not self.run.folder.process:
            state = Checkpoint(step, self.batches.steps, list(self.rows), arrays, seconds)
            for text in self.keeper.keep(state):
                self.run.observer(Noted(text))

    def wait_for_checkpoint(self) -> bool:
        """Return, when the newest checkpoint is written, that it is; say where it could not be."""
        failures = self.keeper.wait()
        for text in failures:
            self.run.observer(Noted(text))
        return not failures

    def write(self, write: Callable[[], object]) -> bool:
        """Write a file of the run, in process 0, and return whether that could be; say where it could not.

        Raises:
            UserError: it could not, and no epoch was kept that would be lost with the training.
        """
        if self.run.folder.process:
            return True
        try:
            write()
        except UserError as error:
            if not self.rows:
                raise
            self.run.observer(Noted(f"{error}; the training goes on, and what was there before stays"))
            return False
        return True

    def write_record(self) -> None:
        """Write down which images are trained on: not those that turned out to be broken."""
        is_first = not self.rows
        every = self.run.distribution.gather(self.batches.broken_places)
        places = sorted({place for places in every for place in places})
        record = self.run.record.as_read(self.run.dataset.train, places, is_first)
        self.network.metadata[SPLIT] = record.as_dict()
        self.write(lambda: self.run.folder.write_json(self.run.folder.split, self.network.metadata[SPLIT]))
