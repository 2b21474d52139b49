"""A training's first steps alone, to see what it will take: nothing is kept."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise import models
from groupwise.data import Dataset, ImageBatches
from groupwise.data.record import record_of
from groupwise.inference.matching import with_classes
from groupwise.inference.preprocessing import preprocessing_of
from groupwise.keras_private import without_tensorflow
from groupwise.models.network import Network
from groupwise.training.beginning import large_batches, prepare, recorded
from groupwise.training.checkpoints import Interval
from groupwise.training.distribution import Distribution
from groupwise.training.events import Noted, Observer, growth
from groupwise.training.keeping import Keeper
from groupwise.training.observers import log
from groupwise.training.plan import Plan
from groupwise.training.seed import set_seed
from groupwise.training.session import Run
from groupwise.training.starting import start_from
from groupwise.training.testing import load_tests, settle_tests
from groupwise.training.workspace import Workspace

STEPS = 6
SHOWN = 24
"""Images of the picture."""


@dataclass(frozen=True)
class Rehearsal:
    """What a training will take; where its images grow, a step of the last epochs, the largest.

    Attributes:
        model: the network's name.
        step_images: images a step.
        image_shape: (height, width, channels) of each.
        image_sizes: (height, width) by the epoch, from 0, from which on images have it.
        classes: how many there are.
        parameters: of the network.
        state_bytes: of its weights, their gradients, and the optimizer's state.
        activation_bytes: of the outputs of all layers in a step, of which most are kept until its end: an estimate.
        first_seconds, step_seconds: of the first step, which may be compiled, and of a later one.
        steps, epochs: of one epoch, and of the whole training.
    """

    model: str
    step_images: int
    image_shape: tuple[int, int, int]
    image_sizes: Mapping[int, tuple[int, int]]
    classes: int
    parameters: int
    state_bytes: int
    activation_bytes: int
    first_seconds: float
    step_seconds: float
    steps: int
    epochs: int

    def facts(self) -> dict[str, str]:
        """Return it as texts by name."""
        shape = "x".join(map(str, (self.step_images, *self.image_shape)))
        epoch = self.step_seconds * self.steps
        other = f"{self.step_seconds:.3g} for each other"
        every = _duration(epoch * self._largest_epochs)
        whole = f"{_duration(epoch)} for an epoch of {self.steps:,} steps, {every} for all"
        return {
            "model": f"{self.model}, {self.parameters:,} parameters",
            **growth(self.image_sizes),
            "step": f"images {shape} to {self.step_images}x{self.classes} logits",
            "memory": f"about {_megabytes(self.state_bytes)} for weights, gradients and the optimizer's state, up to "
            f"{_megabytes(self.activation_bytes)} for what the layers compute in a step",
            "time": f"{self.first_seconds:.3g} seconds for the first step, {other}: about {whole}, without tests",
        }

    @property
    def _largest_epochs(self) -> float:
        """As how many epochs of the largest images all take, where a step's time is that of its pixels."""
        begins, largest = [*self.image_sizes, self.epochs], math.prod(self.image_shape[:2])
        lengths = [end - begin for begin, end in pairwise(begins)]
        pixels = map(math.prod, self.image_sizes.values())
        return sum(length * share for length, share in zip(lengths, pixels, strict=True)) / largest


def rehearse(
    plan: Plan,
    dataset: Dataset,
    picture: Path | None = None,
    *,
    observer: Observer = log,
    tests: Mapping[str, Dataset] | None = None,
) -> Rehearsal:
    """Make a training's first steps on some of its images, and return what it will take.

    Args:
        plan: of a new run.
        dataset: what the plan was made for.
        picture: of a PNG of images as the training sees them, with their classes; None: none is drawn.
        observer: told of what may mislead.
        tests: as `train` has them; they are opened, and nothing is computed of them.

    Raises:
        UserError: as `train`, and where a picture is wanted and cannot be drawn.

    Examples:
        >>> rehearse(plan, digits).step_seconds  # doctest: +SKIP
        0.012
    """
    recipe, distribution = plan.recipe, Distribution.alone()
    with without_tensorflow(), distribution.scope():
        set_seed(plan.seed)
        whole, record, notes = recorded(plan, with_classes(dataset, plan.class_names))
        tests = load_tests(plan.tests) if tests is None else tests
        _, said = settle_tests(tests, plan.class_names, whole.train, record)
        nowhere = Workspace(Path())
        run = Run(plan, whole, record, nowhere, observer, distribution)
        for text in (*notes, *said, *large_batches(run)):
            observer(Noted(text))
        some = _some(whole, plan)
        session = prepare(replace(run, dataset=some, record=record_of(some)), Keeper(nowhere.path, Interval(), 1))
        try:
            if plan.weights is not None:
                start_from(session.network, plan.weights)
            session.batches.epoch = recipe.epochs - 1
            if picture is not None:
                _draw(session.network, session.batches, picture)
            first, later = _time(session.network, session.batches)
        finally:
            session.close()
    images = min(recipe.batch_size, len(whole.train)) // recipe.accumulate
    return Rehearsal(
        model=recipe.model,
        step_images=images,
        image_shape=(*plan.image_size, plan.channels),
        image_sizes=plan.image_sizes,
        classes=len(plan.class_names),
        parameters=session.network.count_params(),
        state_bytes=_state_bytes(session.network),
        activation_bytes=_activation_bytes(session.network, images * (4 if recipe.dtype == "float32" else 2)),
        first_seconds=first,
        step_seconds=later,
        steps=max(1, len(whole.train) // recipe.batch_size) * recipe.accumulate,
        epochs=recipe.epochs,
    )


def _some(dataset: Dataset, plan: Plan) -> Dataset:
    """Return as many of the images to train on as the steps need, and a few of the others."""
    generator, size = np.random.default_rng(plan.seed), plan.recipe.batch_size
    train, test = (
        split.take(np.sort(generator.permutation(len(split))[:count]))
        for split, count in ((dataset.train, math.ceil(STEPS / plan.recipe.accumulate) * size), (dataset.test, size))
    )
    return replace(dataset, train=train, test=test, validation=None, undivided=None)


class _Clock(keras.callbacks.Callback):
    """Notes when each step is done."""

    def __init__(self) -> None:
        super().__init__()
        self.times = [time.perf_counter()]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        float(logs["loss"])  # which waits for the step
        self.times.append(time.perf_counter())


def _time(network: Network, batches: ImageBatches) -> tuple[float, float]:
    """Return the seconds of the first step, and of one of those that follow."""
    clock = _Clock()
    network.fit(
        batches, epochs=1, steps_per_epoch=min(STEPS, batches.steps), verbose=0, shuffle=False, callbacks=[clock]
    )
    seconds = np.diff(clock.times).tolist()
    return seconds[0], statistics.median(seconds[1:] or seconds)


def _state_bytes(network: Network) -> int:
    variables = [*network.variables, *network.trainable_variables, *network.optimizer.variables]
    return sum(math.prod(v.shape) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize for v in variables)


def _activation_bytes(network: Network, bytes_of_one: int) -> int:
    """Return the bytes of all layers' outputs, of which one number of all images has so many."""
    shapes = [row.output_shape[1:] for row in models.describe(network).rows]
    return bytes_of_one * sum(math.prod(side or 1 for side in shape) for shape in shapes)


def _draw(network: Network, batches: ImageBatches, path: Path) -> None:
    from groupwise import report

    images, targets = batches.batch(0)
    preprocessing = preprocessing_of(network)
    pixels = images[:SHOWN] * np.asarray(preprocessing.std) + np.asarray(preprocessing.mean)
    shown: NDArray[np.uint8] = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    names = network.metadata["class_names"]
    report.batch(shown, [_named(target, names) for target in targets[:SHOWN]], path)


def _named(target: NDArray[np.float32], names: list[str]) -> str:
    """Return the class of an image; of one that is mixed the two, with their shares."""
    first, second = np.argsort(-target, kind="stable")[:2]
    smoothed = target.min()
    share = (target[second] - smoothed) / max(float((target - smoothed).sum()), 1e-9)
    return names[first] if share < 0.005 else f"{names[first]} {1 - share:.0%}, {names[second]} {share:.0%}"


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MB" if count < 10 * 2**20 else f"{count / 2**20:,.0f} MB"


def _duration(seconds: float) -> str:
    """Return "40 seconds", "12 minutes" or "3.5 hours"."""
    if seconds < 100:
        return f"{seconds:.2g} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
