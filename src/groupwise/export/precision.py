"""The types of a model that is exported: which arrive as they are, which are widened, and how near outputs come."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.errors import UserError, argument
from groupwise.export.formats import Format
from groupwise.keras_private import calls_of, layers_within

TOLERANCE = 1e-4
# Half precision: 16 steps between two numbers of the type, since rounding adds up over the layers.
HALF_TOLERANCES = {"float16": 2.0**-6, "bfloat16": 2.0**-3}
# Keras resizes integers to integers, rounded or cut off as each framework does: a few steps of 1/255.
RESIZING_TOLERANCE = 2.0**-6
# Of integer outputs, such as the index of the largest value, this share may fall the other way where two are as good
# as equal.
INTEGERS_APART = 1e-3


def file_type(dtype: str) -> str:
    """Return the type that an input or output has in a file: its own, or float32 for bfloat16, which NumPy lacks.

    Raises:
        UserError: it is no number, such as a string.

    Examples:
        >>> file_type("uint8"), file_type("bfloat16")
        ('uint8', 'float32')
    """
    name = "float32" if dtype == "bfloat16" else dtype
    try:
        if np.dtype(name).kind in "biuf":
            return name
    except TypeError:
        pass
    raise UserError(f"inputs or outputs of type {dtype}: only numbers are exported, and bool")


def check_types(model: keras.Model) -> None:
    """Raise UserError, naming the first, where weights are floating-point numbers other than float32."""
    for variable in model.variables:
        if "float" in variable.dtype and variable.dtype != "float32":
            raise UserError(
                f"weight {variable.path} is {variable.dtype}: only networks with float32 weights are exported; make "
                'the network with dtype="float32" or mixed precision, and give it the values by set_weights'
            )


def half_layers(model: keras.Model) -> list[Any]:
    """Return the layers that compute in float16 or bfloat16, the model's own at every depth."""
    layers = (layer for layer in layers_within(model) if not _is_quantized(layer))
    return [layer for layer in layers if layer.compute_dtype in HALF_TOLERANCES]


def _is_quantized(layer: Any) -> bool:
    return isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy)


def widen(model: keras.Model) -> None:
    """Let layers that compute in half precision compute in float32, which no other runtime lacks; no others."""
    for layer in half_layers(model):
        layer.dtype_policy = "float32"


def check_quantized(model: keras.Model, form: Format) -> None:
    """Raise UserError, naming the first, where layers are quantized and a format has no such operations."""
    for layer in filter(_is_quantized, layers_within(model)):
        if not form.quantized:
            raise UserError(
                f"layer {layer.name!r} is quantized ({layer.dtype_policy.name}), which {form.title} cannot hold: "
                f"export the model as it was before quantize(), or to {argument('format', 'savedmodel')}"
            )


def tolerances(model: keras.Model) -> dict[str, float]:
    """Return how far a file may be, relative to the largest output, from a model and from its widened copy.

    Returns:
        By the arrays' names: "outputs" are the model's in its own types, of which the coarsest decides; "widened" those
        of a copy that computes in float32, as the file does.

    Examples:
        >>> tolerances(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="mixed_bfloat16")]))
        {'outputs': 0.125, 'widened': 0.0001}
    """
    limit = RESIZING_TOLERANCE if any(map(_resizes_integers, layers_within(model))) else TOLERANCE
    halves = {layer.compute_dtype for layer in half_layers(model)} | {tensor.dtype for tensor in model.outputs}
    own = max([limit, *(value for dtype, value in HALF_TOLERANCES.items() if dtype in halves)])
    rounded = {HALF_TOLERANCES["float16"] / 8 for tensor in model.outputs if tensor.dtype == "float16"}
    return {"outputs": own, "widened": max([limit, *rounded])}


def _resizes_integers(layer: Any) -> bool:
    if not isinstance(layer, keras.layers.Resizing):
        return False
    return any("int" in tensor.dtype for node in calls_of(layer) for tensor in node.input_tensors)


def relative_difference(outputs: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference of outputs, relative to the largest expected.

    Of integers it is the share that differs beyond one in a thousand.

    It is infinite where the shapes or kinds of types differ, or outputs are not finite.

    Examples:
        >>> relative_difference(np.array([1.0, 3.0]), np.array([1.0, 4.0]))
        0.25
        >>> relative_difference(np.array([1, 3]), np.array([1, 4]))
        0.499
    """
    if outputs.shape != expected.shape or outputs.dtype.kind != expected.dtype.kind:
        return float("inf")
    if outputs.dtype.kind != "f":
        return max(0.0, float((outputs != expected).mean()) - INTEGERS_APART)
    outputs, expected = outputs.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(outputs).all():
        return float("inf")
    return float(np.abs(outputs - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
