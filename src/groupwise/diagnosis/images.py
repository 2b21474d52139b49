"""Faults of the images: not normalised, normalised twice, all alike, or with their channels elsewhere."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.diagnosis.examined import Examined
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.diagnosis.subject import scale_of

_BYTES = 16.0  # a pixel above is one of 0 to 255, which nothing has divided
_FLAT = 0.02  # a deviation below is one of pixels that were divided twice


def scale(examined: Examined) -> Iterator[Finding]:
    """Find images of 0 to 255 where about 1 is expected, and the other way round: by what the first kernel reads."""
    images, read = _images(examined), _first_read(examined)
    if images is None or read is None:
        return
    low, high, deviation = read
    given = f"pixels reach from {float(images.min()):.3g} to {float(images.max()):.3g}"
    factor = scale_of(examined.subject.model)
    # Where a mean was taken away, as ResNets of Keras Applications want it, they reach as far below 0.
    if high > _BYTES and low > -1:
        yield Finding(
            "images not normalised",
            Weight.COSTS,
            given,
            f"the model expects {_expected(examined)}, and nothing in it divides them: the first layer's outputs are "
            "some hundred times too large, and so are the first steps",
            _remedy(examined),
            high,
        )
    elif 0 < deviation < _FLAT:
        twice = f"and the model divides them by {factor:g} itself" if factor > 1 else "as if divided by 255 twice"
        yield Finding(
            "images normalised twice",
            Weight.COSTS,
            f"{given}, {twice}",
            f"the first kernel reads numbers with a deviation of {deviation:.1g}: hardly anything can be told apart",
            "Give it pixels of 0 to 255, or leave its Rescaling layer out" if factor > 1 else _remedy(examined),
            deviation,
        )


def _first_read(examined: Examined) -> tuple[float, float, float] | None:
    """Return the (least, greatest, deviation) of what the first layer with weights reads, where that has a kernel."""
    for name, seen in examined.seen.items():
        part = examined.subject.parts[name]
        if getattr(part, "weights", None) and not isinstance(part, keras.layers.Normalization):
            has_kernel = any(weight.ndim > 1 for weight in part.weights)  # a batch norm makes good whatever it reads
            return seen.reads if has_kernel else None
    return None


def _images(examined: Examined) -> NDArray[Any] | None:
    """Return the images that a user gave; None for random ones, and for what are no images."""
    images = examined.subject.images
    is_array = isinstance(images, np.ndarray) and images.ndim == 4 and not examined.subject.is_random
    return images if is_array and _starts_with_images(examined) else None


def _starts_with_images(examined: Examined) -> bool:
    return not examined.subject.calls or len(examined.subject.model.inputs) == 1


def _expected(examined: Examined) -> str:
    preprocessing = examined.subject.preprocessing
    if preprocessing is None:
        return "numbers of about 1"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return f"(pixels / 255 - ({mean})) / ({std}), as its metadata say"


def _remedy(examined: Examined) -> str:
    if examined.subject.preprocessing is None:
        return (
            "Divide them by 255 once, or put keras.layers.Rescaling(1 / 127.5, offset=-1) first, for pixels of 0 to 255"
        )
    return "Prepare them so: groupwise.inference.preprocessing_of(model).apply(pixels, size)"


def alike(examined: Examined) -> Iterator[Finding]:
    """Find images that are all the same."""
    images = _images(examined)
    if images is not None and len(images) > 1 and not np.ptp(images, axis=0).any():
        yield Finding(
            "images all alike",
            Weight.STOPS,
            f"the {len(images)} images that were looked at are the same",
            "nothing can be told apart: they are read wrongly",
            "Look at some of them before they go into fit()",
            len(images),
        )


def shape_objection(model: keras.Model, images: Any) -> Finding | None:
    """Return what is wrong with the shape of images, which no pass can then be made with; None where nothing is."""
    inputs = getattr(model, "inputs", None)
    if not inputs or len(inputs) != 1 or not isinstance(images, np.ndarray):
        return None
    wanted, given = tuple(inputs[0].shape[1:]), images.shape[1:]
    if len(wanted) == len(given) and all(side in (None, other) for side, other in zip(wanted, given, strict=True)):
        return None
    moved = (*given[1:], given[0]), (given[-1], *given[:-1])
    fits = (
        [len(turned) == len(wanted) and _fits(wanted, turned) for turned in moved] if len(given) == 3 else [False] * 2
    )
    if any(fits):
        now, then = ("first", "last") if fits[0] else ("last", "first")
        why = f"their channels lie on the {now} axis, and the model reads them from the {then} one"
        cure = f"Move the axis: numpy.moveaxis(images, {'1, -1' if fits[0] else '-1, 1'})"
        return Finding("channels on another axis", Weight.STOPS, _shapes(given, wanted), why, cure, given[0])
    why = "the model cannot read them"
    cure = "Give them the model's size and channels, or build the model for theirs"
    return Finding("images of another shape", Weight.STOPS, _shapes(given, wanted), why, cure, len(given))


def _fits(wanted: tuple[int | None, ...], given: tuple[int, ...]) -> bool:
    return all(side in (None, other) for side, other in zip(wanted, given, strict=True))


def _shapes(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    def said(shape: tuple[int | None, ...]) -> str:
        return "x".join("any" if side is None else str(side) for side in shape)

    return f"images are {said(given)}, and the model's input is {said(wanted)}"


RULES = (scale, alike)
