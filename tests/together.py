"""Trainings that several processes do as one: `python -m tests.together FOLDER HOST:PORT COUNT INDEX`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from groupwise import models
from groupwise.data import Dataset, load_dataset
from groupwise.launchers import Place
from groupwise.models.blocks import conv_bn, depthwise_bn
from groupwise.models.registry import GREY, Backbone, Variant
from groupwise.recipes import Recipe
from groupwise.training import Distribution, make_plan, train
from groupwise.training.events import Event, StepDone
from tests import processes
from tests import tiny as bars
from tests.processes import Processes, free_port


class Smooth(Backbone):
    """A network without kinks: where a ReLU's input is near zero, a rounding would make another one of it."""

    def features(self, inputs: Any) -> dict[str, Any]:
        x = conv_bn(inputs, 8, 3, 2, name="stem", activation="silu")
        y = depthwise_bn(x, 3, name="inner", activation="silu")
        y = conv_bn(y, 8, 3, name="outer", groups=2, activation="silu", residual=x)
        return {"stem": x, "stage1": conv_bn(y, 16, 3, 2, name="stage1", groups=4, activation="silu")}


VARIANT = Variant("smooth", "test", Smooth(), num_classes=3, input_shape=(8, 8, 1), reduction=4, preprocessing=GREY)
PLAIN = bars.recipe(model="smooth", batch_size=20, epochs=4, validation=0.1)
RECIPES: dict[str, Recipe] = {
    "average": replace(PLAIN, average=0.9),
    "accumulated": replace(PLAIN, accumulate=5, batch_size=100, epochs=4, first_image_size=(4, 4)),
    "mixed": replace(PLAIN, dtype="mixed_bfloat16"),
}
"""Trainings of 20 steps each."""


def write_data(folder: Path) -> None:
    """Write images of which no number is one that processes divide."""
    arrays = dict(zip(("x_train", "y_train"), bars.bars(117), strict=True))
    np.savez(folder / "bars.npz", **arrays, **dict(zip(("x_test", "y_test"), bars.bars(31, seed=1), strict=True)))
    np.savez(folder / "more.npz", **dict(zip(("x", "y"), bars.bars(23, seed=3), strict=True)))


def train_all(folder: Path, distribution: Distribution, output: str) -> None:
    """Train by each recipe, where there are many processes by the first one alone.

    Process 0 leaves the losses of all steps beside the runs' folders.
    """
    dataset = load_dataset(folder / "bars.npz")
    tests = {"more": load_dataset(folder / "more.npz", test_fraction=1)}
    for name, recipe in list(RECIPES.items())[: 1 if distribution.count > 2 else None]:
        losses = train_one(dataset, recipe, folder / output / name, distribution=distribution, tests=tests)
        if not distribution.index:
            np.save(folder / output / f"{name}.npy", losses)


def train_one(dataset: Dataset, recipe: Recipe, output: Path, **options: Any) -> list[float]:
    losses: list[float] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)

    train(make_plan(dataset, "bars.npz", recipe), dataset, output, observer=observe, **options)
    return losses


def start(folder: Path, count: int, devices: int = 1) -> Processes:
    """Start as many processes that train by each recipe together."""
    end = [str(folder), f"127.0.0.1:{free_port()}", str(count)]
    commands = [["-m", "tests.together", *end, str(index)] for index in range(count)]
    return processes.start(commands, env=processes.environment(devices))


def main(folder: str, coordinator: str, count: str, index: str) -> None:
    models.variants()["smooth"] = VARIANT
    with Distribution(Place(int(index), int(count), coordinator)) as distribution:
        train_all(Path(folder), distribution, count)


if __name__ == "__main__":
    main(*sys.argv[1:])
