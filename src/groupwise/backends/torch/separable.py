"""PyTorch: two convolutions in one pass, the second one 1x1, perhaps after an expansion, a 1x1 too.

Where a derivative is wanted, and nowhere else, they are operations of their own, and what lies between them is kept.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from groupwise.backends.steps import Step
from groupwise.backends.torch.fused import fused, in_float32
from groupwise.backends.torch.operations import Rules, checked, define
from groupwise.backends.torch.passes import executor
from groupwise.core import convolution, epilogues
from groupwise.core import separable as core


def separable(inputs: Any, grouped: Step, pointwise: Step, residual: Any = None, expansion: Step | None = None) -> Any:
    """Return the outputs of both, or all three, in one pass; see `backends.Core.separable`.

    Raises:
        ValueError: where a shape is not the specs', and where there is no such activation.
    """
    steps = (grouped, pointwise) if expansion is None else (expansion, grouped, pointwise)
    arguments: list[Any] = [in_float32("inputs", inputs)]
    for step in steps:
        epilogues.number(step.activation)
        # A recorded prediction computes it once.
        kernel = step.kernel if step.scale is None else step.kernel * step.scale
        arguments += [in_float32("kernel", kernel), in_float32("bias", step.bias)]
    settings = *(step.activation for step in steps), *(convolution.sizes(step.spec) for step in steps)
    return _OPERATIONS[len(steps)](*arguments, in_float32("residual", residual), *settings)


def _divided(arguments: Sequence[Any]) -> tuple[Tensor, Tensor | None, list[tuple[Tensor, Tensor | None, str, Any]]]:
    """Return inputs and residual, and of each convolution kernel, bias, activation and sizes."""
    inputs, *others = arguments
    count = len(others) // 4
    arrays, residual, settings = others[: 2 * count], others[2 * count], others[2 * count + 1 :]
    parts = zip(arrays[::2], arrays[1::2], settings[:count], settings[count:], strict=True)
    return inputs, residual, list(parts)


def _compute(*arguments: Any) -> Tensor:
    inputs, residual, given = _divided(arguments)
    # What is checked is held until the core has read it.
    checks, parts = "groupwise::separable: ", []
    for kernel, bias, activation, numbers in given:
        sizes = tuple(numbers)
        _, filters, after = convolution.known_shapes(sizes)
        kernel, bias = checked(f"{checks}kernel", kernel, filters), checked(f"{checks}bias", bias, after[3:])
        parts.append((kernel, bias, activation, sizes))
    inputs = checked(f"{checks}inputs", inputs, convolution.known_shapes(parts[0][3])[convolution.INPUTS])
    residual = checked(f"{checks}residual", residual, after)
    out = inputs.new_empty(*after)
    *before, between, end = [
        convolution.fusion(
            activation,
            bias=None if bias is None else bias.data_ptr(),
            residual=None if residual is None or index + 1 < len(parts) else residual.data_ptr(),
        )
        for index, (_, bias, activation, _) in enumerate(parts)
    ]
    *first, (kernel, _, _, sizes), (last, _, _, end_sizes) = parts
    arrays = inputs.data_ptr(), kernel.data_ptr(), last.data_ptr(), out.data_ptr()
    expansion = core.expansion(first[0][3], first[0][0].data_ptr(), before[0]) if first else None
    core.run((sizes, end_sizes), arrays, between, end, executor(), expansion)
    return out


def _in_turn(*arguments: Any) -> Tensor:
    image, residual, parts = _divided(arguments)
    for index, (kernel, bias, activation, sizes) in enumerate(parts):
        added = residual if index + 1 == len(parts) else None
        image = fused(image, kernel, bias, added, activation, sizes)
    return image


def _defined(name: str, count: int) -> Any:
    """Return the operation of so many convolutions."""
    numbers = range(count)
    arrays = ", ".join(f"Tensor kernel{i}, Tensor? bias{i}" for i in numbers)
    settings = ", ".join([*(f"str activation{i}" for i in numbers), *(f"SymInt[] sizes{i}" for i in numbers)])
    return define(
        name,
        f"(Tensor inputs, {arrays}, Tensor? residual, {settings}) -> Tensor",
        Rules(
            compute=_compute,
            shapes=lambda inputs, *others: inputs.new_empty(convolution.shapes(tuple(others[-1]))[convolution.OUTPUTS]),
            images=(0, 1 + 2 * count),
            instead=_in_turn,
        ),
    )


_OPERATIONS = {2: _defined("separable", 2), 3: _defined("inverted_residual", 3)}
