"""Keras 2's description of a whole model, in the words of Keras 3."""

from typing import Any

import keras

from groupwise.errors import UserError

Config = dict[str, Any]

SEPARABLE = {"groups": 1, "kernel_initializer": ..., "kernel_regularizer": None, "kernel_constraint": None}
RECURRENT = {"time_major": False, "implementation": ...}
NORM = {"renorm": False, "fused": ..., "virtual_batch_size": None, "adjustment": None}
RANDOM = {"rng_type": ...}
UNKNOWN: dict[str, Config] = {
    **{f"DepthwiseConv{rank}": {"groups": 1} for rank in ("1D", "2D")},
    **{f"Conv{rank}Transpose": {"groups": 1} for rank in ("1D", "2D", "3D")},
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), SEPARABLE),
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", "LSTMCell", "GRUCell", "RNN", "ConvLSTM2D"), RECURRENT),
    "BatchNormalization": NORM,
    **{f"Random{what}": RANDOM for what in ("Brightness", "Contrast", "Crop", "Flip", "Height", "Rotation")},
    **{f"Random{what}": RANDOM for what in ("Translation", "Width", "Zoom")},
    **{f"SpatialDropout{rank}": {"trainable": True, "noise_shape": None} for rank in ("1D", "2D", "3D")},
    "MultiHeadAttention": {"query_shape": ..., "key_shape": ..., "value_shape": ..., "softmax_robust_masking": False},
    "InputLayer": {"ragged": False},
}
"""What Keras 2 wrote of a layer and Keras 3 does not know: it is left out where it has this value, or ... for any."""

NAMES = {
    "SyncBatchNormalization": "BatchNormalization",
    "Custom>SyncBatchNormalization": "BatchNormalization",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
}
"""Classes that have another name now."""

MODELS = ("Functional", "Model", "Sequential")
OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty", "TensorFlowOpLayer")
INNER = ("layer", "forward_layer", "backward_layer", "cell", "cells")
MOVED = ("module", "registered_name", "build_config")
"""Where Keras 2.12 and later say that a class lies: it has moved since, and is found by its name alone."""


def known_arguments(config: Any) -> Any:
    """Return a description without what Keras 3 does not know and what has no meaning, such as `groups` of 1."""
    if isinstance(config, list):
        return [known_arguments(item) for item in config]
    if not isinstance(config, dict):
        return config
    known = {name: known_arguments(value) for name, value in config.items()}
    unknown, arguments = UNKNOWN.get(str(known.get("class_name")), {}), known.get("config")
    if unknown and isinstance(arguments, dict):
        known["config"] = {
            name: value for name, value in arguments.items() if name not in unknown or unknown[name] not in (value, ...)
        }
    return known


def in_keras_3(config: Any) -> Any:
    """Return what Keras 2 wrote of a model, or of a part of one, as Keras 3 reads it.

    Raises:
        UserError: it has operations of TensorFlow in it, which Keras 3 does not know.
    """
    if isinstance(config, list):
        return [in_keras_3(item) for item in config]
    if not isinstance(config, dict):
        return config
    name, arguments = config.get("class_name"), config.get("config")
    if not isinstance(name, str) or "config" not in config:
        return {key: _within(value) if key in INNER else in_keras_3(value) for key, value in config.items()}
    if name in OPERATIONS:
        what = arguments.get("function", name) if isinstance(arguments, dict) else name
        raise UserError(
            f"it holds an operation of TensorFlow ({what}), which Keras 2 wrote down and Keras 3 does not know: make "
            "the model anew without it, with a layer such as Rescaling, and give it this one's weights"
        )
    if name in ("Policy", "PolicyV1") and isinstance(arguments, dict):
        return arguments.get("name")
    if name == "Sequential" and isinstance(arguments, list):  # before Keras 2.2.3
        arguments = {"name": keras.Sequential().name, "layers": arguments}
    if name == "Sequential" and isinstance(arguments, dict):
        arguments = {**arguments, "layers": _with_input(arguments.get("layers"))}
    if isinstance(arguments, dict) and "name" not in arguments:  # an initialiser
        arguments = {key: value for key, value in arguments.items() if key != "dtype"}
    arguments = in_keras_3(arguments)
    if name in MODELS and isinstance(arguments, dict) and "output_layers" in arguments:
        arguments = _with_calls(arguments)
    rest = {key: value for key, value in config.items() if key not in (*MOVED, "config")}
    return {**rest, "class_name": NAMES.get(name, name), "config": arguments}


def _with_input(layers: Any) -> Any:
    """Return a sequential model's layers with an input before them, where the first one tells its shape itself."""
    first = layers[0] if isinstance(layers, list) and layers else {}
    arguments = first.get("config") if isinstance(first, dict) and first.get("class_name") != "InputLayer" else None
    if not isinstance(arguments, dict) or "batch_input_shape" not in arguments:
        return layers
    own = {name: value for name, value in arguments.items() if name != "batch_input_shape"}
    shape = {"batch_shape": arguments["batch_input_shape"], "dtype": arguments.get("dtype") or "float32"}
    inputs = {"class_name": "InputLayer", "config": {**shape, "name": f"{arguments.get('name')}_input"}}
    return [inputs, {**first, "config": own}, *layers[1:]]


def _within(config: Any) -> Any:
    """Return a layer within a layer, which Keras 3 finds by its module."""
    inner = in_keras_3(config)
    if isinstance(inner, list):
        return [_within(item) for item in config]
    is_ours = isinstance(inner, dict) and isinstance(getattr(keras.layers, str(inner.get("class_name")), None), type)
    return {**inner, "module": "keras.layers", "registered_name": None} if is_ours else inner


def _with_calls(arguments: Config) -> Config:
    """Return a functional model's description with its calls as Keras 3 counts and writes them.

    In Keras 2 a model within a model was called once before, when it was made, and counts its calls from 1.
    """
    layers = [layer for layer in arguments["layers"] if isinstance(layer, dict)]
    inner = {layer.get("name"): layer.get("class_name") for layer in layers if layer.get("class_name") in MODELS}
    names = {layer.get("name") for layer in layers}

    def is_reference(value: Any) -> bool:
        return isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str) and value[0] in names

    def tensor(reference: list[Any]) -> Config:
        layer, call, place = reference[:3]
        history = [layer, call - (layer in inner), place]
        return {
            "class_name": "__keras_tensor__",
            "config": {"shape": [1], "dtype": "float32", "keras_history": history},
        }

    def converted(value: Any) -> Any:
        if is_reference(value):
            return tensor(value)
        return [converted(item) for item in value] if isinstance(value, list) else value

    def call(node: list[list[Any]]) -> Config:
        read = [tensor(reference) for reference in node]
        keywords = node[0][3] if len(node[0]) > 3 else {}
        return {
            "args": read if len(read) == 1 else [read],
            "kwargs": {name: converted(value) for name, value in keywords.items()},
        }

    def output(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 1:  # Keras 2 gave one output as it is, whatever was asked for
            return output(value[0])
        if is_reference(value):
            # Keras 3 counts a functional model's from 1 here, and a sequential one's from 0.
            return [value[0], value[1] - (inner.get(value[0]) == "Sequential"), value[2]]
        if isinstance(value, dict):
            return {name: output(item) for name, item in value.items()}
        return [output(item) for item in value] if isinstance(value, list) else value

    called = [
        {**layer, "inbound_nodes": [call(node) if isinstance(node, list) else node for node in layer["inbound_nodes"]]}
        for layer in layers
    ]
    ends = {name: output(arguments[name]) for name in ("input_layers", "output_layers")}
    return {**arguments, "layers": called, **ends}
