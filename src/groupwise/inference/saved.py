"""Networks that were saved: found in a run or a file, and read with all that using them needs."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.data import BrokenImage, Dataset, Split, centre_crop, prepare_image, read_image
from groupwise.data.classes import match_names, some
from groupwise.errors import UserError
from groupwise.files import expanded
from groupwise.inference.evaluation import predict_logits, probabilities
from groupwise.inference.run_folder import RunFolder
from groupwise.inference.saliency import Explainer
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.models.reading import is_model, load_model
from groupwise.texts import quoted
from groupwise.weights import imagenet_classes
from groupwise.weights.publishers import INTERPOLATIONS

PREDICTED_AT_ONCE = 32


def model_path(run_or_model: str | Path) -> Path:
    """Return the model's file that is meant: the file itself, or the last model of a run's folder.

    Raises:
        UserError: there is none.
    """
    path = expanded(run_or_model)
    if path.is_dir() and not is_model(path):
        folder = RunFolder(path)
        if not folder.last.exists():
            raise UserError(f"{path} holds no {folder.last.name}: it is no run's folder, or no epoch was finished")
        return folder.last
    if not path.exists():
        raise UserError(f"{path} does not exist: name the folder of a run, or a model's file (.keras or .h5)")
    return path


def read_model(run_or_model: str | Path) -> keras.Model:
    """Return any saved Keras model: a run's last one, or that in a file, as `load_model` does."""
    return load_model(model_path(run_or_model))


def load_network(run_or_model: str | Path) -> Network | RewrittenNetwork:
    """Return a saved network with its weights, class names and preprocessing.

    Raises:
        UserError: there is no such file, it is damaged, or none of our commands wrote it.
    """
    path = model_path(run_or_model)
    network = load_model(path)
    if not isinstance(network, Network | RewrittenNetwork) or "class_names" not in network.metadata:
        raise UserError(
            f"{path} was not written by `groupwise train` or `convert`: it has no class names and preprocessing. "
            "Any model can be described, accelerated and exported; to predict and evaluate, train one here"
        )
    shape = network.architecture["input_shape"]
    if len(network.inputs) != 1 or len(shape) != 3:
        raise UserError(f"{path} is no network from images to classes: its input's shape is {network.input_shape}")
    if None in shape:
        raise UserError(
            f"{path} is a network for images of any size: create it again with an input_shape, and save that"
        )
    _check_metadata(path, network)
    return network


def _check_metadata(path: Path, network: Network | RewrittenNetwork) -> None:
    """Raise UserError where a model's metadata do not say what its classes are and how its images are prepared."""
    names, outputs = network.metadata["class_names"], network.output_shape
    classes = outputs[-1] if isinstance(outputs, tuple) and len(outputs) == 2 else None
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is damaged: its class_names must be {classes or 'as many'} texts, one for each output")
    given = network.metadata.get("preprocessing")
    given = given if isinstance(given, dict) else {}
    channels = network.architecture["input_shape"][2]
    wrong = [
        name
        for name, is_right in (
            ("mean", _are_numbers(given.get("mean"), channels)),
            ("std", _are_numbers(given.get("std"), channels) and all(value > 0 for value in given["std"])),
            ("crop", _are_numbers([given.get("crop", 1)], 1) and 0 < given.get("crop", 1) <= 1),
            ("interpolation", given.get("interpolation", "bilinear") in INTERPOLATIONS),
            ("offset", given.get("offset", "even") in ("even", "down")),
        )
        if not is_right
    ]
    if wrong:
        raise UserError(f"{path} is damaged: its preprocessing says {wrong[0]}={given.get(wrong[0])!r}")


def _are_numbers(values: Any, count: int) -> bool:
    """Return whether values are finite numbers, `count` of them or one for all."""
    if not isinstance(values, list | tuple) or len(values) not in (1, count):
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def match_classes(network: Network | RewrittenNetwork, dataset: Dataset) -> tuple[Split, str | None]:
    """Return the test split with the network's classes, and a note on names that are written in another way.

    Classes are matched by name, or by ImageNet's WordNet id, never by position; the data may have fewer.

    Raises:
        UserError: the data has classes that the network does not know, or that may be several.
    """
    known: list[str] = network.metadata["class_names"]
    places = places_of(dataset.class_names, known)
    unknown = [name for name in dataset.class_names if name not in places]
    if unknown:
        numbers = "; its labels are numbers: the classes' names are needed" if "".join(unknown).isdecimal() else ""
        raise UserError(
            f"{dataset.name} has classes that the model does not know: {some(unknown)}{numbers}. It knows {some(known)}"
        )
    note = None
    ids = _ids(known)
    other = {name: known[place] for name, place in places.items() if name != known[place] and name not in ids}
    if other:
        name, twin = next(iter(other.items()))
        more = f", and {len(other) - 1} more that are written in another way" if len(other) > 1 else ""
        note = f"the class {quoted(name)} is the model's {quoted(twin)}{more}"
    return dataset.relabelled(known, [places[name] for name in dataset.class_names]).test, note


def with_classes(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """Return a data set to train on, its classes in this order and written in this way.

    Raises:
        UserError: it has others, or lacks some.
    """
    places = places_of(dataset.class_names, class_names)
    extra = [name for name in dataset.class_names if name not in places]
    taken = set(places.values())
    missing = [name for place, name in enumerate(class_names) if place not in taken]
    if extra or missing:
        says = [f"{some(extra)} {'is' if len(extra) == 1 else 'are'} new"] * bool(extra)
        says += [f"it lacks {some(missing)}"] * bool(missing)
        raise UserError(f"{dataset.name} has other classes than the model: {'; '.join(says)}")
    return dataset.relabelled(class_names, [places[name] for name in dataset.class_names])


def places_of(names: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Return the place of each known name, or of its WordNet id where the known names are ImageNet's.

    Raises:
        UserError: a name may be one of several (two of ImageNet's classes are called crane), or several names are one.
    """
    ids = _ids(known)
    by_id = {name: ids[name] for name in names if name in ids}
    return {**match_names([name for name in names if name not in ids], known), **by_id}


def _ids(known: Sequence[str]) -> dict[str, int]:
    """Return the places of ImageNet's classes by their WordNet ids; empty where the known ones are not ImageNet's."""
    classes = imagenet_classes()
    return {name: place for place, name in enumerate(classes)} if list(classes.values()) == list(known) else {}


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of an image file.

    Attributes:
        path: the file.
        probabilities: float32, of the network's classes.
        activation: float32, (rows, columns): where it looked, from 0 to 1; None where that was not asked for.
    """

    path: Path
    probabilities: NDArray[np.float32]
    activation: NDArray[np.float32] | None = None


def predict_images(
    network: Network | RewrittenNetwork,
    paths: Iterable[Path],
    on_broken: Callable[[BrokenImage], Any],
    explain: bool = False,
    explained_class: int | None = None,
) -> Iterator[Prediction]:
    """Yield what the network says of each readable image file.

    Args:
        network: with preprocessing in its metadata.
        paths: image files.
        on_broken: told of each file that cannot be read.
        explain: whether to say where it looked, too.
        explained_class: for which class; None for each image's most likely one.

    Raises:
        UserError: where the network looked cannot be said.
    """
    model = Explainer(network) if explain else network
    pending: list[tuple[Path, NDArray[np.float32]]] = []
    for path in paths:
        try:
            pending.append((path, prepared_image(network, path)))
        except BrokenImage as error:
            on_broken(error)
            continue
        if len(pending) == PREDICTED_AT_ONCE:
            yield from _predict(model, pending, explained_class)
            pending = []
    yield from _predict(model, pending, explained_class)


def prepared_image(
    network: Network | RewrittenNetwork, path: Path, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Return an image file as a network wants it, of its own size or of `size` (height, width).

    Raises:
        BrokenImage: the file cannot be read.
    """
    height, width, channels = network.architecture["input_shape"]
    preprocessing = network.metadata["preprocessing"]
    mean, std = (np.asarray(preprocessing[name], np.float32) for name in ("mean", "std"))
    options = {name: preprocessing[name] for name in ("crop", "interpolation", "offset") if name in preprocessing}
    pixels = prepare_image(read_image(path, channels), size or (height, width), **options)
    return ((pixels / np.float32(255) - mean) / std).astype(np.float32)


def crop_box(network: Network | RewrittenNetwork, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of what a network sees of an image of (height, width), in its pixels."""
    preprocessing, (height, width, _) = network.metadata["preprocessing"], network.architecture["input_shape"]
    scaled, (top, left) = centre_crop(size, (height, width), preprocessing["crop"], preprocessing.get("offset", "even"))
    vertical, horizontal = size[0] / scaled[0], size[1] / scaled[1]
    return left * horizontal, top * vertical, (left + width) * horizontal, (top + height) * vertical


def _predict(
    model: Network | RewrittenNetwork | Explainer,
    pending: Sequence[tuple[Path, NDArray[np.float32]]],
    explained_class: int | None,
) -> Iterator[Prediction]:
    if not pending:
        return
    images = np.stack([image for _, image in pending])
    # A single image needs no filling up: there will be no second batch.
    batch_size = PREDICTED_AT_ONCE if len(pending) > 1 else 1
    maps: Iterable[NDArray[np.float32] | None] = [None] * len(pending)
    if isinstance(model, Explainer):
        classes = None if explained_class is None else [explained_class] * len(pending)
        logits, maps = model.explain(images, classes, batch_size)
    else:
        logits = predict_logits(model, images, batch_size)
    for (path, _), values, heat in zip(pending, probabilities(logits), maps, strict=True):
        yield Prediction(path, values, heat)
