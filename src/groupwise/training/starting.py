"""What training starts from: a trained network, or published weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groupwise import models
from groupwise.errors import UserError
from groupwise.models.network import Network
from groupwise.models.pretrained import load_pretrained, read_origin
from groupwise.models.saved import is_model
from groupwise.training.saved import load_network
from groupwise.weights import is_source

_SETTLED_BY_THE_DATA = ("name", "num_classes", "input_shape", "include_top", "features", "dtype")


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
    preprocessing: Mapping[str, Any] | None
    image_size: tuple[int, int]
    channels: int


def model_of(weights: str) -> str:
    """Return the name of the network that trained weights belong to. Raises UserError where only the user knows it."""
    if _are_published(weights):
        raise UserError(f"--weights {weights}: say which network they belong to: --model NAME")
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
    if _are_published(weights):
        origin = read_origin(model, weights, **arguments)
        channels = models.find(model).input_shape[2]
        return Start(origin.arguments, origin.preprocessing, origin.image_size, channels)
    network = load_network(weights)
    architecture = network.architecture
    height, width, channels = architecture["input_shape"]
    if model != architecture["name"]:
        # Of another network only those layers are taken that fit.
        return Start(arguments, None, models.find(model).input_shape[:2], channels)
    own = {name: value for name, value in architecture.items() if name not in _SETTLED_BY_THE_DATA}
    return Start({**own, **arguments}, network.metadata["preprocessing"], (height, width), channels)


def start_from(network: Network, weights: str) -> str:
    """Give a fresh network the weights that training starts from, and return a clause that says what was taken.

    Raises:
        UserError: the weights cannot be had or read, or they do not fit.
    """
    if _are_published(weights):
        note = load_pretrained(network, weights)
        return f"all layers from {weights}" if note is None else f"from {weights}; {note}"
    copied, total = _transfer(network, load_network(weights))
    if not copied:
        raise UserError(f"{weights}: no layer fits {network.name}; take a model of the same network")
    return f"{copied} of {total} layers from {weights}"


def _are_published(weights: str) -> bool:
    """Return whether a text names weights without a network: an .h5 file may hold either."""
    return is_source(weights) and not is_model(Path(weights))


def _transfer(network: Network, source: Network) -> tuple[int, int]:
    """Copy every layer's weights that have the same name and shapes; return (layers copied, layers with weights)."""
    sources = {layer.name: layer for layer in source.layers}
    copied = total = 0
    for layer in network.layers:
        if not layer.weights:
            continue
        total += 1
        twin = sources.get(layer.name)
        if twin is not None and [v.shape for v in twin.weights] == [v.shape for v in layer.weights]:
            layer.set_weights(twin.get_weights())
            copied += 1
    return copied, total
