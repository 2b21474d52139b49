"""Networks of Keras Applications by their names, and the numbers that their weights were trained on."""

import importlib
import re
from typing import Any, NamedTuple

import keras
import numpy as np

from groupwise import keras_private

MODULES = {
    r"densenet(121|169|201)": "densenet",
    r"inception_resnet_v2": "inception_resnet_v2",
    r"inception_v3": "inception_v3",
    r"mobilenet_\d\.\d\d_\w+": "mobilenet",
    r"mobilenetv2_\d\.\d\d_\w+": "mobilenet_v2",
    r"NASNet|nasnet_(mobile|large)": "nasnet",
    r"resnet(50|101|152)": "resnet",
    r"resnet(50|101|152)v2": "resnet_v2",
    r"vgg16": "vgg16",
    r"vgg19": "vgg19",
    r"xception": "xception",
}
"""The modules of keras.applications by patterns of their networks' names: those whose images are prepared outside."""

_LEARNED = ("bias", "beta", "moving_mean")  # all zero before the first step
_KERNEL = 4  # axes of a convolution's


class Application(NamedTuple):
    """A network of Keras Applications: its function for images, and what that makes of the pixels 0 to 255."""

    function: str
    low: float
    high: float


def application_in(model: keras.Model) -> Application | None:
    """Return the network of Keras Applications that a model is or holds, and that brought its weights along.

    It reads the model's images first, and learnt something somewhere else: not in this model's training.
    """
    for part in keras_private.layers_within(model):
        # Those of groupwise, which have the same names, say themselves what they expect.
        if not isinstance(part, keras.Model) or hasattr(part, "architecture"):
            continue
        for pattern, module in MODULES.items():
            if re.fullmatch(pattern, part.name) and _is_first(part, model) and _came_trained(part, model):
                return Application(f"keras.applications.{module}.preprocess_input", *_range(module))
    return None


def _is_first(network: keras.Model, model: keras.Model) -> bool:
    first = next((id(variable) for variable in model.variables if len(variable.shape) == _KERNEL), None)
    return any(id(variable) == first for variable in network.variables)


def _came_trained(network: keras.Model, model: keras.Model) -> bool:
    variables = [variable for variable in network.variables if variable.name in _LEARNED]
    has_learned = any(np.any(keras.ops.convert_to_numpy(variable)) for variable in variables)
    optimizer = model.optimizer if model.compiled else None
    is_trained_here = optimizer is not None and bool(int(keras.ops.convert_to_numpy(optimizer.iterations)))
    return has_learned and not (is_trained_here and network.trainable_variables)


def _range(module: str) -> tuple[float, float]:
    """Return what the module's function makes of black and white, of the channels the least and the greatest."""
    prepare: Any = importlib.import_module(f"keras.applications.{module}").preprocess_input
    ends = np.stack([np.zeros((1, 1, 3)), np.full((1, 1, 3), 255.0)])
    prepared = prepare(ends, data_format="channels_last")
    return float(prepared.min()), float(prepared.max())
