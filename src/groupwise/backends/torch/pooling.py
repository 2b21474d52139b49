"""PyTorch: the C core's max pooling as operations with derivatives of any order.

The gradient is linear in the outputs' gradient, and so is its own: the elements at the maxima's places, which PyTorch
gathers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from groupwise.backends.torch import passes
from groupwise.backends.torch.operations import Rules, checked, define
from groupwise.core import convolution, pooling
from groupwise.spec import ConvSpec

_NAMES = {getattr(torch, name): name for name in pooling.ELEMENTS}


def max_pool(inputs: Any, spec: ConvSpec) -> Any:
    """Return the maxima of NHWC `inputs` on the CPU, of the spec's shape and type; see `pooling.max_pool`.

    Examples:
        >>> inputs = torch.tensor([[1.0, 5.0], [5.0, 2.0]]).reshape(1, 2, 2, 1)
        >>> max_pool(inputs, pooling.window((1, 2, 2, 1), (2, 2), (2, 2))).item()
        5.0
    """
    outputs, _ = _MAX_POOL(inputs.contiguous(), convolution.sizes(spec), False)
    return outputs


def _max_pool(inputs: Tensor, sizes: list[int], keep: bool) -> tuple[Tensor, Tensor]:
    """Return the maxima and, if `keep`, their places, which derivatives need; else no places."""
    known = tuple(sizes)
    before, _, after = convolution.known_shapes(known)
    inputs = checked("groupwise::max_pool: inputs", inputs, before, _NAMES)
    outputs = inputs.new_empty(*after)
    places = inputs.new_empty(after if keep else (0,), dtype=torch.uint8)
    places_at = places.data_ptr() if keep else None
    executor = passes.executor()
    pooling.run(known, _NAMES[inputs.dtype], inputs.data_ptr(), outputs.data_ptr(), places_at, executor)
    return outputs, places


def _shapes(inputs: Tensor, sizes: list[int], keep: bool) -> tuple[Tensor, Tensor]:
    after = convolution.shapes(tuple(sizes))[convolution.OUTPUTS]
    return inputs.new_empty(after), inputs.new_empty(after if keep else (0,), dtype=torch.uint8)


def _max_pool_gradient(gradient: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
    known = tuple(sizes)
    before, _, after = convolution.known_shapes(known)
    gradient = checked("groupwise::max_pool_gradient: gradient", gradient, after, _NAMES)
    places = checked("groupwise::max_pool_gradient: places", places, after, (torch.uint8,))
    out = gradient.new_empty(*before)
    executor = passes.executor()
    pooling.run_gradient(
        known, _NAMES[gradient.dtype], gradient.data_ptr(), places.data_ptr(), out.data_ptr(), executor
    )
    return out


def _save(context: Any, arguments: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> None:
    context.sizes = arguments[1]
    context.save_for_backward(results[1])


def _backward(context: Any, gradient: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    (places,) = context.saved_tensors
    return None if gradient is None else _MAX_POOL_GRADIENT(gradient, places, context.sizes), None, None


def _tangent(arguments: Sequence[Any], tangents: Sequence[Tensor | None], _: Tensor, places: Tensor) -> Any:
    return None if tangents[0] is None else _gather(tangents[0], places, arguments[1]), None


def _save_places(context: Any, arguments: tuple[Any, ...], result: Tensor) -> None:
    _, places, context.sizes = arguments
    context.save_for_backward(places)


def _backward_of_gradient(context: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    (places,) = context.saved_tensors
    return None if gradient is None else _gather(gradient, places, context.sizes), None, None


def _tangent_of_gradient(arguments: Sequence[Any], tangents: Sequence[Tensor | None], result: Tensor) -> Tensor | None:
    return None if tangents[0] is None else _MAX_POOL_GRADIENT(tangents[0], *arguments[1:])


def _gather(images: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
    """Return the elements of `images`, of the inputs' shape, at the maxima's places; zero for windows without any."""
    (batch, height, width, channels, out_height, out_width), window_width = sizes[:6], sizes[8]
    stride_y, stride_x, _, _, top, left = sizes[10:]
    place, device = places.long(), places.device
    rows = torch.arange(out_height, device=device).reshape(-1, 1, 1) * stride_y - top + place // window_width
    columns = torch.arange(out_width, device=device).reshape(-1, 1) * stride_x - left + place % window_width
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = torch.where(inside, rows * width + columns, 0).reshape(batch, -1, channels)
    gathered = images.reshape(batch, -1, channels).gather(1, index).reshape(places.shape)
    return torch.where(inside, gathered, 0)


_MAX_POOL = define(
    "max_pool",
    "(Tensor inputs, SymInt[] sizes, bool keep) -> (Tensor, Tensor)",
    Rules(
        compute=_max_pool,
        shapes=_shapes,
        save=_save,
        backward=_backward,
        tangent=_tangent,
        constants=(1,),
        images=(0,),
        recorded=lambda inputs, sizes, keep: (inputs, sizes, True),
    ),
)
_MAX_POOL_GRADIENT = define(
    "max_pool_gradient",
    "(Tensor gradient, Tensor places, SymInt[] sizes) -> Tensor",
    Rules(
        compute=_max_pool_gradient,
        shapes=lambda gradient, _, sizes: gradient.new_empty(convolution.shapes(tuple(sizes))[convolution.INPUTS]),
        save=_save_places,
        backward=_backward_of_gradient,
        tangent=_tangent_of_gradient,
        images=(0, 1),
    ),
)
