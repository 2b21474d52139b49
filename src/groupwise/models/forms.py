"""ResNeXt's three equivalent forms, and trained weights carried from one to another.

A layer is named alike in all of them, but for the number of the path that it belongs to in forms a and b:
`stage1_unit1_path3_spatial_conv` holds the third slice of what `stage1_unit1_spatial_conv` holds in form c. So there
is one rule: the weights of the paths, side by side, are those of form c.
"""

import inspect
import re
from typing import Any

import keras
import numpy as np

from groupwise import models
from groupwise.errors import UserError
from groupwise.models.network import Network
from groupwise.models.residual import FORMS, check_choice


def convert_form(model: Network, form: str) -> Network:
    """Return the same trained network in another of ResNeXt's forms.

    Args:
        model: a ResNeXt of any family (SE-ResNeXt, SENet and CIFAR's too) made by `create`; it is left as it is.
        form: "a" (paths summed), "b" (paths concatenated) or "c" (grouped convolution).

    Returns:
        A new network, not compiled, with all weights, the moving statistics of batch norm included. Its outputs are the
        model's up to rounding: they differ by at most 1e-5 of the largest absolute logit.

    Raises:
        UserError: a ValueError, where the model has no forms, or `form` is not one of them.

    Source: Aggregated Residual Transformations, arXiv 1611.05431, figure 3 and section 3.3.

    Examples:
        >>> from groupwise.models import create
        >>> convert_form(create("resnext20_16x4d_cifar10"), "b").output_shape
        (None, 10)
    """
    check_choice("form", form, FORMS)
    if not _has_forms(model):
        raise UserError(
            f"model {model.name!r}: only a ResNeXt made by groupwise.models.create has the forms a, b and c; "
            "pass one of list_models('*resnext*') or list_models('senet*')"
        )
    converted = models.create(**{**model.architecture, "form": form})
    converted.metadata.update(model.metadata)
    source = _layers_by_name(model)
    for name, paths in _layers_by_name(converted).items():
        pieces = [np.split(weight, len(paths), _path_axis(name, weight)) for weight in _joined(name, source[name])]
        for path, weights in zip(paths, zip(*pieces, strict=True), strict=True):
            path.set_weights(weights)
    return converted


def _has_forms(model: keras.Model) -> bool:
    return isinstance(model, Network) and (
        "form" in inspect.signature(models.find(model.architecture["name"]).build).parameters
    )


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
