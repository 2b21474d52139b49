"""A network, a data set and a recipe so small that a whole training takes a second."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from groupwise import models
from groupwise.data import Augmentation, Dataset, load_dataset
from groupwise.models.blocks import conv_bn
from groupwise.models.registry import GREY, Backbone, Variant
from groupwise.recipes import Recipe

RECIPE = Recipe(
    name="tiny",
    model="tiny",
    epochs=4,
    batch_size=16,
    learning_rate=0.05,
    optimizer_options={"momentum": 0.9, "nesterov": True},
    warm_up=0.25,
    weight_decay=1e-3,
    label_smoothing=0.05,
    dtype="float32",
    augmentation=Augmentation(flip=True, crop_padding=1),
)


class Tiny(Backbone):
    def features(self, inputs: Any) -> dict[str, Any]:
        x = conv_bn(inputs, 8, 3, 2, name="stem")
        return {"stem": x, "stage1": conv_bn(x, 8, 3, 2, name="stage1", groups=2)}


VARIANT = Variant("tiny", "test", Tiny(), num_classes=3, input_shape=(8, 8, 1), reduction=4, preprocessing=GREY)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the tiny network among the models, and return its name."""
    monkeypatch.setitem(models.variants(), "tiny", VARIANT)
    return "tiny"


def bars(count: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return grey 8x8 images of horizontal, vertical and diagonal bars, and their classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = generator.integers(0, 60, (count, 8, 8))
    for image, label in zip(images, labels, strict=True):
        place = generator.integers(1, 7)
        if label == 0:
            image[place] += 180
        elif label == 1:
            image[:, place] += 180
        else:
            np.fill_diagonal(image, 230)
    return images.astype(np.uint8), labels


def write_npz(path: Path, with_validation: bool = False) -> Path:
    """Write bars as an .npz: 96 to train on, 30 to test on, and perhaps 30 for validation."""
    arrays = dict(zip(("x_train", "y_train"), bars(96), strict=True))
    arrays |= dict(zip(("x_test", "y_test"), bars(30, seed=1), strict=True))
    if with_validation:
        arrays |= dict(zip(("x_val", "y_val"), bars(30, seed=2), strict=True))
    np.savez(path, **arrays)
    return path


def write_folder(root: Path, train: int = 111, test: int = 30) -> Path:
    """Write bars as PNG files: root/train/<class>/<number>.png and the same below test/."""
    for role, count in (("train", train), ("test", test)):
        for index, (image, label) in enumerate(zip(*bars(count), strict=True)):
            folder = root / role / ("across", "down", "slant")[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:03}.png")
    return root


def write_classes(root: Path, numbers: range, classes: Sequence[str] = ("across", "down", "slant")) -> Path:
    """Write bars as root/<class>/<number>.png, every one another image."""
    for number in numbers:
        for name, image in zip(classes, bars(3, seed=number)[0], strict=False):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / name / f"{number:03}.png")
    return root


def dataset(path: Path, with_validation: bool = False) -> Dataset:
    """Return the bars in an .npz below a folder."""
    return load_dataset(write_npz(path / "bars.npz", with_validation))


def recipe(**changes: Any) -> Recipe:
    """Return the tiny recipe with some settings changed."""
    return replace(RECIPE, **changes)


def weights(path: Path) -> list[NDArray[np.float32]]:
    """Return all weights of a saved model."""
    return [np.asarray(value) for value in keras.saving.load_model(path, compile=False).get_weights()]
