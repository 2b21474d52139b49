"""TensorFlow: two convolutions in one pass, the second one 1x1 (`csrc/bindings/tensorflow_separable.cc`).

Before them may come an expansion, a 1x1 too. Their gradients are those of operations of their own, for which what lies
between them is computed again.
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
_BEFORE = ("expansions", "expansion_biases", "expansion_scales")
_AFTER = ("biases", "scales", "end_biases", "end_residuals", "end_scales")


def separable(inputs: Any, grouped: Step, pointwise: Step, residual: Any = None, expansion: Step | None = None) -> Any:
    """Return the outputs of both, or all three, in one pass; see `backends.Core.separable`.

    Batch, height and width may be unknown while tracing. XLA cannot compile it: `tf.function(jit_compile=True)` raises
    `InvalidArgumentError`.

    Raises:
        ValueError: where a type is not float32, there is no such activation, or TensorFlow computes on an accelerator.
        tf.errors.InvalidArgumentError: where the arrays' shapes are not those of the convolutions and what follows.
    """
    first = Step(None, grouped.spec) if expansion is None else expansion
    before = first.kernel, first.bias, first.scale
    extras = grouped.bias, grouped.scale, pointwise.bias, residual, pointwise.scale
    kernels = {"kernel": grouped.kernel, "pointwise_kernel": pointwise.kernel}
    optional = dict(zip((*_BEFORE, *_AFTER), (*before, *extras), strict=True))
    tensors = float32_tensors({"inputs": inputs, **kernels, **optional})
    lists = {name: [tensors[name]] if name in tensors else [] for name in optional}
    return run(
        "GroupwiseSeparable",
        [
            tensors["inputs"],
            *(lists[name] for name in _BEFORE),
            *(tensors[name] for name in kernels),
            *(lists[name] for name in _AFTER),
        ],
        pointwise.spec.output_shape,
        **attributes_of(grouped.spec),
        activation=epilogues.number(grouped.activation),
        pointwise_groups=pointwise.spec.groups,
        end_activation=epilogues.number(pointwise.activation),
        expansion_groups=1 if expansion is None else expansion.spec.groups,
        expansion_activation=epilogues.number(first.activation),
    )


@tf.RegisterGradient("GroupwiseSeparable")
def _gradient(operation: Any, upstream: Any) -> list[Any]:
    return gradients_of(partial(_in_turn, operation), operation, upstream)


def _in_turn(operation: Any, image: Any, *arrays: Any) -> Any:
    """Return the outputs by operations of their own."""
    left, attribute = list(arrays), operation.get_attr
    fused = operations()["GroupwiseFusedConv2D"]
    expansion, expansion_bias, expansion_scale = ([left.pop(0) for _ in range(attribute(name))] for name in _BEFORE)
    kernel, pointwise = left.pop(0), left.pop(0)
    bias, scale, end_bias, end_residual, end_scale = ([left.pop(0) for _ in range(attribute(name))] for name in _AFTER)
    for own in expansion:
        more = {"groups": attribute("expansion_groups"), "activation": attribute("expansion_activation")}
        image = fused(image, own, expansion_bias, [], expansion_scale, **_POINTWISE, **more)
    attributes = {**same_attributes(operation), "activation": attribute("activation")}
    between = fused(image, kernel, bias, [], scale, **attributes)
    more = {"groups": attribute("pointwise_groups"), "activation": attribute("end_activation")}
    return fused(between, pointwise, end_bias, end_residual, end_scale, **_POINTWISE, **more)
