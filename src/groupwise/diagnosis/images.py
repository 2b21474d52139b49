"""Faults of the images: not normalised, normalised twice, all alike, or with their channels elsewhere."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.diagnosis.examined import Examined
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.diagnosis.subject import scale_of
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, SEPARABLE

_BYTES = 16.0  # a pixel above is one of 0 to 255, which nothing has divided
_FLAT = 0.02  # a deviation below is one of pixels that were divided twice
_ABOUT = 0.05  # times 1
_COLOURS = (3, 4)
_SMOOTH_FROM = 8  # pixels of a side: fewer tell nothing of their neighbours
_GREY = 0.25  # times the difference of neighbours: where channels were reshaped, they are neighbours, a third at least
_SMOOTHER = 0.75  # photos read in the wrong order are rougher: 0.57 at most is right; in the right one 2.5 at least


def scale(examined: Examined) -> Iterator[Finding]:
    """Find images of 0 to 255 where about 1 is expected, and the other way round: by what the first kernel reads."""
    images, read = _images(examined), _first_read(examined)
    if images is None or read is None:
        return
    low, high, deviation = read
    given = f"pixels reach from {float(images.min()):.3g} to {float(images.max()):.3g}"
    factor = scale_of(examined.subject.model)
    if _is_bytes(examined, low, high):
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


def prepared_otherwise(examined: Examined) -> Iterator[Finding]:
    """Find images that a trained network of Keras Applications was not trained on: of another range than its own."""
    images, read, application = _images(examined), _first_read(examined), examined.subject.application
    if images is None or read is None or application is None:
        return
    low, high, deviation = read
    width = application.high - application.low
    is_narrow = high - low < width / 10
    # An augmentation's noise reaches further than what was prepared, and bright images begin above its middle.
    is_outside = min(low - application.low, application.high - high) < -width / 2
    is_divided_alone = abs(low) < _ABOUT and high < 1 + _ABOUT
    is_other = _is_bytes(examined, low, high) or 0 < deviation < _FLAT  # which other findings say
    is_raw = _expects_large(examined) and low > -1 and high > application.high + _BYTES
    if (is_narrow or is_outside or is_divided_alone or is_raw) and not is_other:
        yield Finding(
            "images prepared otherwise",
            Weight.COSTS,
            f"the first kernel reads numbers from {low:.3g} to {high:.3g}",
            f"the weights that Keras Applications has for it were trained on numbers from {application.low:.3g} to "
            f"{application.high:.3g}",
            _remedy(examined),
            deviation,
        )


def _is_bytes(examined: Examined, low: float, high: float) -> bool:
    """Return whether pixels of 0 to 255 are read where numbers of about 1 are expected."""
    # Where a mean was taken away, as ResNets of Keras Applications want it, they reach as far below 0.
    return high > _BYTES and low > -1 and not _expects_large(examined)


def _expects_large(examined: Examined) -> bool:
    """Return whether a network of Keras Applications wants pixels of 0 to 255 less their mean."""
    application = examined.subject.application
    return application is not None and application.high > _BYTES


def scrambled(examined: Examined) -> Iterator[Finding]:
    """Find images whose channels were moved by `reshape`: smooth where their memory is read in the other order."""
    images = _images(examined)
    data_format = next((call.operation.data_format for call in examined.calls(*DENSE, *DEPTHWISE, *SEPARABLE)), None)
    if images is None or data_format is None:
        return
    count, *sides = images.shape
    is_last = data_format == "channels_last"
    channels, *plane = (sides[-1], *sides[:-1]) if is_last else sides
    if channels not in _COLOURS or min(plane) < _SMOOTH_FROM:
        return
    last, first = (count, *plane, channels), (count, channels, *plane)
    given, other = (images, images.reshape(first)) if is_last else (np.moveaxis(images, 1, -1), images.reshape(last))
    seen, read = _roughness(given), _roughness(np.moveaxis(other, 1, -1) if is_last else other)
    colours = np.abs(np.diff(given.astype(np.float64), axis=-1)).mean()
    # Grey pixels, whose channels are alike, are smooth in either order where all changes from row to row.
    if colours > _GREY * seen.min() and read.all() and (read < _SMOOTHER * seen).all():
        now, then = ("first", "last") if is_last else ("last", "first")
        moved = "1, -1" if is_last else "-1, 1"
        yield Finding(
            "channels reshaped, not moved",
            Weight.STOPS,
            f"neighbouring pixels differ {float((seen / read).min()):.1f} times as much as they do where the same "
            f"memory is read with its channels on the {now} axis",
            f"a reshape from channels_{now} to channels_{then} leaves the numbers where they are: each pixel holds "
            "some of several others",
            f"Move the axis: numpy.moveaxis(images, {moved}), on images that have their channels {now}",
            float((seen / read).min()),
        )


def _roughness(images: NDArray[Any]) -> NDArray[np.float64]:
    """Return how much pixels differ from the one below and from the one beside, on average."""
    values = images.astype(np.float64)
    return np.array([np.abs(np.diff(values, axis=axis)).mean() for axis in (1, 2)])


def _expected(examined: Examined) -> str:
    preprocessing, application = examined.subject.preprocessing, examined.subject.application
    if application is not None:
        return f"numbers from {application.low:.3g} to {application.high:.3g}"
    if preprocessing is None:
        return "numbers of about 1"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return f"(pixels / 255 - ({mean})) / ({std}), as its metadata say"


def _remedy(examined: Examined) -> str:
    if examined.subject.application is not None:
        return f"Give it {examined.subject.application.function}(pixels), of pixels of 0 to 255"
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


RULES = (scale, prepared_otherwise, scrambled, alike)
