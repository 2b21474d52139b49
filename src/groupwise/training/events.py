"""What a training tells whoever observes it. Importing this imports no framework.

An observer is any function of an event; most events have lines for a reader.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from groupwise.errors import argument
from groupwise.inference.run_folder import RunFolder
from groupwise.texts import printable

if TYPE_CHECKING:
    from groupwise.data import Dataset
    from groupwise.training.plan import Plan
    from groupwise.training.summary import RunSummary

WORTH_SAYING = 0.05
"""From this share on it is said that training waited for its input."""
NAMED_BROKEN = 10


@dataclass(frozen=True)
class Event:
    """Something that happened in a training."""

    def lines(self) -> list[str]:
        """Return what a reader should see of it; names of others in it are as they are."""
        return []

    def __str__(self) -> str:
        return "\n".join(map(printable, self.lines()))

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON, its kind as "event"."""
        kind = re.sub(r"(?<=.)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"event": kind, **{field.name: getattr(self, field.name) for field in fields(self)}}


@dataclass(frozen=True)
class Begun(Event):
    """A training begins, or goes on.

    Attributes:
        plan: of it.
        dataset: as this run has it: one that is resumed keeps to the images that it began with.
        folder: of the run.
        backend: Keras's.
        accelerator: the name of the card that it trains on; None for a CPU.
    """

    plan: "Plan"
    dataset: "Dataset"
    folder: Path
    backend: str
    accelerator: str | None = None

    def facts(self) -> dict[str, str]:
        """Return what is trained on what, by name."""
        dataset, recipe, (height, width) = self.dataset, self.plan.recipe, self.plan.image_size
        sizes = "of several sizes" if dataset.image_size is None else "of {}x{}".format(*dataset.image_size)
        place = self.backend if self.accelerator is None else f"{self.backend} on {self.accelerator}"
        steps = f" in {recipe.accumulate} steps" if recipe.accumulate > 1 else ""
        validation = f", {len(dataset.validation):,} for validation" if dataset.validation is not None else ""
        return {
            "data": f"{dataset.name}: {len(dataset.train):,} images to train on{validation}, {len(dataset.test):,} to "
            f"test on, {len(dataset.class_names)} classes, {'grey' if dataset.channels == 1 else 'colour'}, {sizes}",
            "model": f"{recipe.model} for {height}x{width} pixels",
            "recipe": f"{recipe.name}: {_epochs(recipe.epochs)}, batches of {recipe.batch_size}{steps}, "
            f"{recipe.optimizer}, learning rate up to {self.plan.learning_rate:g}",
            **growth(self.plan.image_sizes),
            "backend": f"{place}, {recipe.dtype}",
            "output": str(self.folder),
        }

    def lines(self) -> list[str]:
        return [*(f"{name:<9}{text}" for name, text in self.facts().items()), *self.dataset.notes]

    def as_dict(self) -> dict[str, Any]:
        given = {"folder": str(self.folder), "backend": self.backend, "accelerator": self.accelerator}
        return {"event": "begun", **self.plan.as_dict(), **given, "notes": list(self.dataset.notes)}


@dataclass(frozen=True)
class Noted(Event):
    """Something about the data that may mislead, or is other than it was; or what the run's folder will lack."""

    text: str

    def lines(self) -> list[str]:
        return [self.text]


@dataclass(frozen=True)
class WeightsTaken(Event):
    """The network has its first weights from elsewhere: a clause that says which, and from where."""

    text: str

    def lines(self) -> list[str]:
        return [f"{'weights':<9}{self.text}"]


@dataclass(frozen=True)
class ReadingBegun(Event):
    """Images are read, as many as memory is to hold."""


@dataclass(frozen=True)
class ReadingEnded(Event):
    """They have been read, or could not be."""


@dataclass(frozen=True)
class FitBegun(Event):
    """The first step is about to be made.

    Attributes:
        epochs: of the whole training.
        steps: of one epoch.
        finished: epochs that were finished before.
        first: steps of the next one that were made before.
    """

    epochs: int
    steps: int
    finished: int
    first: int = 0


@dataclass(frozen=True)
class StepDone(Event):
    """A step was made.

    Attributes:
        epoch, step: which one of which epoch, both from 1.
        loss, accuracy: of the epoch so far.
        images, seconds: trained on in this epoch, and how long that took.
        seconds_waited: of these, in which there was no input.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    images: int
    seconds: float
    seconds_waited: float


@dataclass(frozen=True)
class EpochEnded(Event):
    """An epoch was finished, tested and saved.

    Attributes:
        epoch, epochs: which one, from 1, of how many.
        judged_by: "validation" or "test", the images that the network was tested on.
        numbers: the epoch's row of metrics.csv.
    """

    epoch: int
    epochs: int
    judged_by: str
    numbers: Mapping[str, float]

    def lines(self) -> list[str]:
        numbers, judge = self.numbers, self.judged_by
        waited = numbers["share_waited"]
        line = (
            f"epoch {self.epoch:>{len(str(self.epochs))}}/{self.epochs}  "
            f"accuracy {numbers['accuracy']:.2%}  loss {numbers['loss']:.4f}  "
            f"{judge} accuracy {numbers[f'{judge}_accuracy']:.2%}  loss {numbers[f'{judge}_loss']:.4f}  "
            f"{numbers['images_per_second']:,.0f} images/s"
            f"{'' if waited < WORTH_SAYING else f', {waited:.0%} of the time waiting for images'}"
        )
        return [line]


@dataclass(frozen=True)
class FitEnded(Event):
    """The last step was made, whatever the reason."""


@dataclass(frozen=True)
class EndedEarly(Event):
    """A training ended early.

    Attributes:
        reason: why; empty where somebody asked for it.
        kept: a clause that says what is left of it.
    """

    reason: str
    kept: str

    def lines(self) -> list[str]:
        return [f"{self.reason or 'stopped'}: {self.kept}"]


@dataclass(frozen=True)
class Retried(Event):
    """The loss was not finite, and the training goes back.

    Attributes:
        reason: a clause.
        epoch: the finished one that it goes on from; 0: it begins anew.
        learning_rate: the highest one from now on.
        retries: how often it went back so far, this one included.
    """

    reason: str
    epoch: int
    learning_rate: float
    retries: int

    def lines(self) -> list[str]:
        place = f"goes back to the end of epoch {self.epoch}" if self.epoch else "begins anew"
        return [f"{self.reason}: the training {place}, with a learning rate up to {self.learning_rate:g}"]


@dataclass(frozen=True)
class Finished(Event):
    """All epochs are done, and the last model was tested."""

    summary: "RunSummary"
    folder: Path

    def lines(self) -> list[str]:
        summary = self.summary
        broken, files = summary.broken_images, RunFolder(self.folder)
        names = [file.name for file in (files.last, files.best, files.metrics)]
        names += [file.name for file in (files.curves, files.report) if file.exists()]
        lines = []
        if broken:
            lines = [f"{len(broken)} broken {'image was' if len(broken) == 1 else 'images were'} skipped:"]
            lines += [f"  {name}: {reason}" for name, reason in broken[:NAMED_BROKEN]]
        if len(broken) > NAMED_BROKEN:
            lines.append(f"  and {len(broken) - NAMED_BROKEN} more, in {files.summary}")
        lines += [
            f"test accuracy {summary.test_accuracy:.2%} of {summary.test_images:,} images (top 5: "
            f"{summary.test_top5:.2%}) after {_epochs(summary.epochs)} and {summary.training_seconds:,.0f} seconds of "
            "training",
            f"{files.best.name} is epoch {summary.best_epoch}'s, {_choice(summary)}",
            *(
                f"{files.best.name} on {name}: accuracy {test.accuracy:.2%} of {test.images:,} images (top 5: "
                f"{test.top5:.2%})"
                for name, test in summary.tests.items()
            ),
            f"{self.folder} holds {', '.join(names[:-1])} and {names[-1]}",
        ]
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {"event": "finished", **asdict(self.summary), "folder": str(self.folder)}


def _choice(summary: "RunSummary") -> str:
    """Return a clause that says who chose the best model, and what its accuracy is worth."""
    also = ", which also ended the training" if summary.ended_by_patience else ""
    share = f"{summary.best_accuracy:.2%}"
    if summary.judged_by != "test":
        return f"with {share} of the {summary.judged_by} images{also}"
    return (
        f"chosen by the test images{also}: the {share} of them that it names rightly are no test accuracy "
        f"({argument('validation', 0.1)} sets other images aside to choose by)"
    )


def growth(image_sizes: Mapping[int, tuple[int, int]]) -> dict[str, str]:
    """Return, where the images of a training grow, the fact how they do, by its name.

    Examples:
        >>> growth({0: (96, 96), 4: (128, 128)})
        {'sizes': 'images of 96x96 from epoch 1, 128x128 from epoch 5'}
        >>> growth({0: (128, 128)})
        {}
    """
    sizes = [f"{height}x{width} from epoch {epoch + 1}" for epoch, (height, width) in image_sizes.items()]
    return {"sizes": f"images of {', '.join(sizes)}"} if len(sizes) > 1 else {}


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


Observer: TypeAlias = Callable[[Event], object]
