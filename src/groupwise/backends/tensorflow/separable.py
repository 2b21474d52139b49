"""TensorFlow: two convolutions in one pass, the second one 1x1 (`csrc/bindings/tensorflow_separable.cc`).

Their gradients are those of two operations, for which what lies between them is computed again.
"""

from functools import partial
from typing import Any

import tensorflow as tf

from groupwise.backends.steps import Step
from groupwise.backends.tensorflow.operations import (
    attributes_of,
    float32_tensors,
    gradients_of,
    operations,
    run,
    same_attributes,
)
from groupwise.core import epilogues

_POINTWISE = {"strides": (1, 1), "dilations": (1, 1), "padding": (0, 0, 0, 0)}
_COUNTS = ("biases", "scales", "end_biases", "end_residuals", "end_scales")


def separable(inputs: Any, grouped: Step, pointwise: Step, residual: Any = None) -> Any:
    """Return the outputs of both in one pass; see `backends.Core.separable`.

    Batch, height and width may be unknown while tracing. XLA cannot compile it: `tf.function(jit_compile=True)` raises
    `InvalidArgumentError`.

    Raises:
        ValueError: where a type is not float32, there is no such activation, or TensorFlow computes on an accelerator.
        tf.errors.InvalidArgumentError: where the arrays' shapes are not those of two convolutions and what follows.
    """
    given = {"inputs": inputs, "kernel": grouped.kernel, "pointwise_kernel": pointwise.kernel}
    extras = grouped.bias, grouped.scale, pointwise.bias, residual, pointwise.scale
    tensors = float32_tensors({**given, **dict(zip(_COUNTS, extras, strict=True))})
    arguments = [tensors[name] for name in given]
    arguments += [[tensors[name]] if name in tensors else [] for name in _COUNTS]
    return run(
        "GroupwiseSeparable",
        arguments,
        pointwise.spec.output_shape,
        **attributes_of(grouped.spec),
        activation=epilogues.number(grouped.activation),
        pointwise_groups=pointwise.spec.groups,
        end_activation=epilogues.number(pointwise.activation),
    )


@tf.RegisterGradient("GroupwiseSeparable")
def _gradient(operation: Any, upstream: Any) -> list[Any]:
    return gradients_of(partial(_in_two, operation), operation, upstream)


def _in_two(operation: Any, inputs: Any, kernel: Any, pointwise: Any, *extras: Any) -> Any:
    """Return the outputs by two operations."""
    left = list(extras)
    bias, scale, end_bias, end_residual, end_scale = (
        [left.pop(0) for _ in range(operation.get_attr(name))] for name in _COUNTS
    )
    fused = operations()["GroupwiseFusedConv2D"]
    attributes = {**same_attributes(operation), "activation": operation.get_attr("activation")}
    between = fused(inputs, kernel, bias, [], scale, **attributes)
    attributes = {**_POINTWISE, "groups": operation.get_attr("pointwise_groups")}
    end = operation.get_attr("end_activation")
    return fused(between, pointwise, end_bias, end_residual, end_scale, **attributes, activation=end)
