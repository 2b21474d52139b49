"""What training starts from: a trained network, or published weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupwise import models
from groupwise.data import Preprocessing
from groupwise.data.classes import some
from groupwise.errors import UserError, argument
from groupwise.inference.matching import places_of
from groupwise.inference.networks import load_network
from groupwise.inference.preprocessing import preprocessing_of
from groupwise.models.network import Network
from groupwise.models.pretrained import load_pretrained, read_origin
from groupwise.models.reading import is_model
from groupwise.weights import is_source

Array: TypeAlias = NDArray[Any]

HEAD = "head"
SETTLED_BY_THE_DATA = ("name", "num_classes", "input_shape", "include_top", "features", "dtype")
"""Arguments of `groupwise.models.create` that are not the network's own."""


@dataclass(frozen=True)
class Start:
    """What weights expect of the network that goes on from them.

    Attributes:
        arguments: of `groupwise.models.create`, beside those that the data settle.
        preprocessing: of its images; None for the network's own.
        image_size: (height, width) of its images.
        channels: of its images, 1 or 3.
    """

    arguments: Mapping[str, Any]
    preprocessing: Preprocessing | None
    image_size: tuple[int, int]
    channels: int


def model_of(weights: str) -> str:
    """Return the name of the network that trained weights belong to. Raises UserError where only the user knows it."""
    if are_published(weights):
        which = f"say which network they belong to: {argument('model', 'NAME')}"
        raise UserError(f"{argument('weights', weights)}: {which}")
    return str(load_network(weights).architecture["name"])


def find_start(weights: str, model: str, arguments: Mapping[str, Any]) -> Start:
    """Return what weights expect.

    Args:
        weights: a run's folder, a model's file, or a source of published weights.
        model: the network that is to be trained.
        arguments: the user's own of `groupwise.models.create`, which come first.

    Raises:
        UserError: the weights cannot be had or read.
    """
    if are_published(weights):
        origin = read_origin(model, weights, **arguments)
        channels = models.find(model).input_shape[2]
        return Start(origin.arguments, origin.preprocessing, origin.image_size, channels)
    network = load_network(weights)
    architecture = network.architecture
    height, width, channels = architecture["input_shape"]
    if model != architecture["name"]:
        # Of another network only those layers are taken that fit.
        return Start(arguments, None, models.find(model).input_shape[:2], channels)
    own = {name: value for name, value in architecture.items() if name not in SETTLED_BY_THE_DATA}
    return Start({**own, **arguments}, preprocessing_of(network), (height, width), channels)


def start_from(network: Network, weights: str) -> str:
    """Give a fresh network the weights that training starts from, and return a clause that says what was taken.

    Of the head each class gets the values of the class of its name; a class that the weights do not know stays fresh.

    Raises:
        UserError: the weights cannot be had or read, or they do not fit.
    """
    if are_published(weights):
        return _start_from_published(network, weights)
    source = load_network(weights)
    places = _places(network, source.metadata["class_names"])
    copied, total = _transfer(network, source, places)
    if not copied:
        raise UserError(f"{weights}: no layer fits {network.name}; take a model of the same network")
    return f"{copied} of {total} layers from {weights}{_fresh_classes(network, places)}"


def are_published(weights: str) -> bool:
    """Return whether a text names weights without a network: an .h5 file may hold either."""
    return is_source(weights) and not is_model(Path(weights))


def _start_from_published(network: Network, weights: str) -> str:
    head = network.get_layer(HEAD)
    fresh = head.get_weights()
    loaded = load_pretrained(network, weights)
    beside = f"; {loaded.beside}" if loaded.beside else ""
    if loaded.fresh_head is not None:
        return f"from {weights}; {loaded.fresh_head}{beside}"
    if loaded.class_names is None:
        unnamed = "which does not name its classes: they are taken in the data's order"
        return f"all layers from {weights}, {unnamed}{beside}"
    places = _places(network, loaded.class_names)
    head.set_weights(_by_class(fresh, head.get_weights(), network.metadata["class_names"], places))
    return f"all layers from {weights}{_fresh_classes(network, places)}{beside}"


def _places(network: Network, class_names: Sequence[str]) -> dict[str, int]:
    """Return the place in trained weights of each of a network's classes; none where a name may mean several."""
    try:
        return places_of(network.metadata["class_names"], class_names)
    except UserError:
        return {}


def _transfer(network: Network, source: Network, places: Mapping[str, int]) -> tuple[int, int]:
    """Copy every layer's weights that have the same name and shapes; return (layers copied, layers with weights).

    Args:
        places: the class's place in the source's head of each class that it knows.
    """
    sources = {layer.name: layer for layer in source.layers}
    copied = total = 0
    for layer in network.layers:
        if not layer.weights:
            continue
        total += 1
        twin = sources.get(layer.name)
        if twin is None:
            continue
        is_head = layer.name == HEAD
        theirs, own = ([v.shape[:-1] if is_head else v.shape for v in side.weights] for side in (twin, layer))
        if theirs != own or (is_head and not places):
            continue
        values = twin.get_weights()
        if is_head:
            values = _by_class(layer.get_weights(), values, network.metadata["class_names"], places)
        layer.set_weights(values)
        copied += 1
    return copied, total


def _by_class(
    fresh: Sequence[Array],
    trained: Sequence[Array],
    class_names: Sequence[str],
    places: Mapping[str, int],
) -> list[Array]:
    """Return a head's values, of every class along the last axis, with the trained ones of each class that has some."""
    own = [index for index, name in enumerate(class_names) if name in places]
    theirs = [places[class_names[index]] for index in own]
    values = [np.array(value) for value in fresh]
    for value, source in zip(values, trained, strict=True):
        value[..., own] = np.asarray(source)[..., theirs]
    return values


def _fresh_classes(network: Network, places: Mapping[str, int]) -> str:
    """Return a clause that says which classes' part of the head is fresh."""
    fresh = [name for name in network.metadata["class_names"] if name not in places]
    if not fresh:
        return ""
    return f"; new in the head: {some(fresh)}" if places else "; the head is fresh, since it knows none of the classes"
