"""PyTorch: two convolutions in one pass, the second one 1x1.

Where a derivative is wanted, and nowhere else, they are two operations, and what lies between them is kept.
"""

from typing import Any

from torch import Tensor

from groupwise.backends.steps import Step
from groupwise.backends.torch.fused import fused, in_float32
from groupwise.backends.torch.operations import Rules, checked, define
from groupwise.backends.torch.passes import executor
from groupwise.core import convolution, epilogues
from groupwise.core import separable as core


def separable(inputs: Any, grouped: Step, pointwise: Step, residual: Any = None) -> Any:
    """Return the outputs of both in one pass; see `backends.Core.separable`.

    Raises:
        ValueError: where a shape is not the specs', and where there is no such activation.
    """
    arguments: list[Any] = [in_float32("inputs", inputs)]
    for step in (grouped, pointwise):
        epilogues.number(step.activation)
        # A recorded prediction computes it once.
        kernel = step.kernel if step.scale is None else step.kernel * step.scale
        arguments += [in_float32("kernel", kernel), in_float32("bias", step.bias)]
    settings = grouped.activation, pointwise.activation, *(convolution.sizes(s.spec) for s in (grouped, pointwise))
    return _SEPARABLE(*arguments, in_float32("residual", residual), *settings)


def _compute(
    inputs: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    pointwise: Tensor,
    end_bias: Tensor | None,
    residual: Tensor | None,
    *settings: Any,
) -> Tensor:
    activation, end_activation, *both = settings
    sizes = tuple(both[0]), tuple(both[1])
    (before, filters, between), (_, end_filters, after) = map(convolution.known_shapes, sizes)
    name = "groupwise::separable"
    # Held until the core has read them.
    inputs, kernel = checked(f"{name}: inputs", inputs, before), checked(f"{name}: kernel", kernel, filters)
    bias = checked(f"{name}: bias", bias, between[3:])
    pointwise = checked(f"{name}: pointwise", pointwise, end_filters)
    end_bias = checked(f"{name}: end_bias", end_bias, after[3:])
    residual = checked(f"{name}: residual", residual, after)
    out = inputs.new_empty(*after)
    at = [None if array is None else array.data_ptr() for array in (bias, end_bias, residual)]
    fusions = (
        convolution.fusion(activation, bias=at[0]),
        convolution.fusion(end_activation, bias=at[1], residual=at[2]),
    )
    arrays = inputs.data_ptr(), kernel.data_ptr(), pointwise.data_ptr(), out.data_ptr()
    core.run(sizes, arrays, *fusions, executor())
    return out


def _in_two(*arguments: Any) -> Tensor:
    inputs, kernel, bias, pointwise, end_bias, residual, activation, end_activation, *sizes = arguments
    between = fused(inputs, kernel, bias, None, activation, sizes[0])
    outputs: Tensor = fused(between, pointwise, end_bias, residual, end_activation, sizes[1])
    return outputs


_SEPARABLE = define(
    "separable",
    "(Tensor inputs, Tensor kernel, Tensor? bias, Tensor pointwise, Tensor? end_bias, Tensor? residual, "
    "str activation, str end_activation, SymInt[] sizes, SymInt[] end_sizes) -> Tensor",
    Rules(
        compute=_compute,
        shapes=lambda inputs, *others: inputs.new_empty(convolution.shapes(tuple(others[-1]))[convolution.OUTPUTS]),
        images=(0, 5),
        instead=_in_two,
    ),
)
