"""What TensorFlow exported, a SavedModel or a LiteRT file: convolutions counted, and run as its users run it."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from groupwise import keras_private

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_./-]|^[_/-]")
Inspection = tuple[list[int], Callable[[Any], Any]]


def use_plain_arguments() -> None:
    """Let Keras's argmax and argmin be one operation each; its own ask for the bits of zeros, which LiteRT cannot."""
    numpy = keras_private.tensorflow_operations()

    def plain(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
            with mock.patch.object(numpy, "signbit", lambda x: tf.less(x, 0)):
                return function(x, axis, keepdims)

        return call

    numpy.argmax, numpy.argmin = plain(numpy.argmax), plain(numpy.argmin)


def plain_name(name: str) -> str:
    """Return a name with "_" for every character that TensorFlow does not allow."""
    return _NOT_IN_NAMES.sub("_", name)


def use_plain_names(model: Any) -> None:
    """Give layers and variables names that TensorFlow allows in a graph, where others are as good."""
    for layer in keras_private.layers_within(model):
        layer.name = plain_name(layer.name)
    for variable in model.variables:
        keras_private.name_in_graphs(variable, plain_name(variable.path))


def inspect_savedmodel(path: Path) -> Inspection:
    """Return the convolutions' groups of a SavedModel, and its function from images to outputs."""
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]
    # Constants have shapes, of which the groups follow; in the file, kernels are variables.
    operations = convert_variables_to_constants_v2(function).graph.get_operations()
    groups = []
    for operation in operations:
        if operation.type in ("Conv2D", "DepthwiseConv2dNative"):
            images, kernel = operation.inputs
            axis = 1 if operation.get_attr("data_format") == b"NCHW" else -1
            depthwise = operation.type == "DepthwiseConv2dNative"
            groups.append(kernel.shape[2] if depthwise else images.shape[axis] // kernel.shape[2])
    (name,) = function.structured_input_signature[1]

    def run(images: Any, loaded: Any = loaded) -> Any:  # the function alone does not keep its variables alive
        (outputs,) = function(**{name: tf.constant(images)}).values()
        return outputs.numpy()

    return groups, run


def inspect_litert(path: Path) -> Inspection:
    """Return the convolutions' groups of a LiteRT file, and the interpreter's function from images to outputs."""
    interpreter = _interpreter(str(path))
    tensors = {tensor["index"]: tensor["shape"] for tensor in interpreter.get_tensor_details()}
    groups = []
    for operation in interpreter._get_ops_details():
        if operation["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            images, kernel = (tensors[index] for index in operation["inputs"][:2])
            depthwise = operation["op_name"] == "DEPTHWISE_CONV_2D"
            groups.append(int(images[3] if depthwise else images[3] // kernel[3]))
    place, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(images: Any) -> Any:
        interpreter.resize_tensor_input(place, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(place, images)
        interpreter.invoke()
        return interpreter.get_tensor(result)

    return groups, run


def _interpreter(path: str) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tf.lite.Interpreter  # noqa: N806
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to the package above
        return Interpreter(path)
