"""ResNeXt's three equivalent forms of our networks, and trained weights carried from one to another.

A layer is named alike in all of them, but for the number of the path that it belongs to in forms a and b:
`stage1_unit1_path3_spatial_conv` holds the third slice of what `stage1_unit1_spatial_conv` holds in form c. So there
is one rule: the weights of the paths, side by side, are those of form c.
"""

import re
from typing import Any

import keras
import numpy as np

from groupwise import models
from groupwise.models.network import Network
from groupwise.models.residual import FORMS, check_choice


def in_form(model: Network, form: str) -> Network:
    """Return the same trained network, which `has_forms`, created anew in another form."""
    check_choice("form", form, FORMS)
    converted = models.create(**{**model.architecture, "form": form})
    converted.metadata.update(model.metadata)
    source = _layers_by_name(model)
    for name, paths in _layers_by_name(converted).items():
        pieces = [np.split(weight, len(paths), _path_axis(name, weight)) for weight in _joined(name, source[name])]
        for path, weights in zip(paths, zip(*pieces, strict=True), strict=True):
            path.set_weights(weights)
    return converted


def has_forms(model: keras.Model) -> bool:
    """Return whether `create` made a model, and can make it in ResNeXt's three forms."""
    return isinstance(model, Network) and models.find(model.architecture["name"]).takes("form")


def _layers_by_name(model: keras.Model) -> dict[str, list[keras.layers.Layer]]:
    """Return the layers that hold weights by their names in form c, the paths of one name in order."""
    paths: dict[str, dict[int, keras.layers.Layer]] = {}
    for layer in model.layers:
        if layer.weights:
            number = re.search(r"_path(\d+)", layer.name)
            name = layer.name.replace(number[0], "") if number else layer.name
            paths.setdefault(name, {})[int(number[1]) if number else 1] = layer
    return {name: [layers[number] for number in sorted(layers)] for name, layers in paths.items()}


def _joined(name: str, paths: list[keras.layers.Layer]) -> list[np.ndarray[Any, Any]]:
    """Return the weights of form c's layer."""
    weights = zip(*(path.get_weights() for path in paths), strict=True)
    return [np.concatenate(pieces, _path_axis(name, pieces[0])) for pieces in weights]


def _path_axis(name: str, weight: np.ndarray[Any, Any]) -> int:
    """Return the axis along which the paths lie: the last 1x1's input channels, every other layer's output channels."""
    return -2 if name.endswith("_expand_conv") else -1
