"""Networks that were saved: found in a run or a file, and read with all that using them needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from groupwise.errors import UserError, call
from groupwise.inference.preprocessing import preprocessing_of
from groupwise.inference.run_folder import RunFolder
from groupwise.models import create, find, variants
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.models.reading import ENDINGS, OTHERS, is_model, load_model
from groupwise.writing import expanded


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


def is_saved(model: str | Path) -> bool:
    """Return whether a run's folder or a model's file is meant, rather than a network by its name."""
    path = expanded(model)
    is_a_models = path.suffix.lower() in (*ENDINGS, *OTHERS) or path.is_dir()
    return is_a_models or (path.exists() and str(model) not in variants())


def named_model(
    model: str,
    image_size: tuple[int, int] | None = None,
    channels: int | None = None,
    classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Return the network of a name, with fresh weights, or the model that a run or a file holds, whoever made it.

    Args:
        model: a name of `groupwise.models.list_models`, a run's folder or a model's file.
        image_size: (height, width) of the network's images, in pixels. Default: the name's own.
        channels, classes: likewise.
        arguments: of the network's own.

    Raises:
        UserError: there is no such network, or a saved one is to be another.
    """
    if is_saved(model):
        if arguments or any(given is not None for given in (classes, image_size, channels)):
            raise UserError(f"{model} is a saved network: its classes, size and arguments are settled")
        return read_model(model)
    height, width, own_channels = find(model).input_shape
    shape = (*(image_size or (height, width)), own_channels if channels is None else channels)
    return create(model, num_classes=classes, input_shape=shape, **(arguments or {}))


def load_network(run_or_model: str | Path) -> Network | RewrittenNetwork:
    """Return a saved network with its weights, class names and preprocessing.

    Raises:
        UserError: there is no such file, it is damaged, or none of our commands wrote it.
    """
    path = model_path(run_or_model)
    network = load_model(path)
    if not isinstance(network, Network | RewrittenNetwork) or "class_names" not in network.metadata:
        raise UserError(
            f"{path} was not written by {call('train')}: it has no class names and preprocessing. "
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
    try:
        preprocessing_of(network)
    except UserError as error:
        raise UserError(f"{path} is damaged: its {error}") from None
