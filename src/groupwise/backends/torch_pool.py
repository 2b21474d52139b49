"""PyTorch: the C core's max pooling as custom operations, with gradients of any order.

The gradient is linear in the outputs' gradient, and so is its own: the elements at the maxima's places, which PyTorch
gathers.
"""

from typing import Any

import torch

from groupwise import native, pooling
from groupwise.backends import torch_core
from groupwise.spec import ConvSpec

_NAMES = {getattr(torch, name): name for name in pooling.ELEMENTS}


def max_pool(inputs: Any, spec: ConvSpec) -> Any:
    """Return the maxima of NHWC `inputs` on the CPU, of the spec's shape and type; see `pooling.max_pool`.

    Examples:
        >>> inputs = torch.tensor([[1.0, 5.0], [5.0, 2.0]]).reshape(1, 2, 2, 1)
        >>> max_pool(inputs, pooling.window((1, 2, 2, 1), (2, 2), (2, 2))).item()
        5.0
    """
    keep = torch.is_grad_enabled() and inputs.requires_grad
    outputs, _ = _max_pool(inputs.contiguous(), native.sizes(spec), keep)
    return outputs


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], types: Any) -> None:
    if tensor.shape != shape or tensor.dtype not in types:
        raise ValueError(
            f"{name} of shape {tuple(tensor.shape)} and type {tensor.dtype}: must be of shape {shape} and one of the "
            f"types {', '.join(map(str, types))}"
        )


@torch.library.custom_op("groupwise::max_pool", mutates_args=(), device_types="cpu")
def _max_pool(inputs: torch.Tensor, sizes: list[int], keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maxima and, if `keep`, their places, which the gradient needs; else no places."""
    known = tuple(sizes)
    before, _, after = native.shapes(known)
    _check("groupwise::max_pool: inputs", inputs, before, _NAMES)
    inputs, outputs = inputs.contiguous(), inputs.new_empty(after)
    places = inputs.new_empty(after if keep else (0,), dtype=torch.uint8)
    places_at = places.data_ptr() if keep else None
    executor = torch_core.executor()
    pooling.run(known, _NAMES[inputs.dtype], inputs.data_ptr(), outputs.data_ptr(), places_at, executor)
    return outputs, places


@_max_pool.register_fake
def _(inputs: torch.Tensor, sizes: list[int], keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    after = native.shapes(tuple(sizes))[native.OUTPUTS]
    return inputs.new_empty(after), inputs.new_empty(after if keep else (0,), dtype=torch.uint8)


@torch.library.custom_op("groupwise::max_pool_gradient", mutates_args=(), device_types="cpu")
def _max_pool_gradient(gradient: torch.Tensor, places: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    known = tuple(sizes)
    before, _, after = native.shapes(known)
    _check("groupwise::max_pool_gradient: gradient", gradient, after, _NAMES)
    _check("groupwise::max_pool_gradient: places", places, after, (torch.uint8,))
    gradient, places, out = gradient.contiguous(), places.contiguous(), gradient.new_empty(before)
    executor = torch_core.executor()
    pooling.run_gradient(
        known, _NAMES[gradient.dtype], gradient.data_ptr(), places.data_ptr(), out.data_ptr(), executor
    )
    return out


@_max_pool_gradient.register_fake
def _(gradient: torch.Tensor, places: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return gradient.new_empty(native.shapes(tuple(sizes))[native.INPUTS])


def _save(ctx: Any, inputs: tuple[torch.Tensor, list[int], bool], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, ctx.sizes, ctx.keep = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None]:
    if not ctx.keep:
        raise RuntimeError("groupwise::max_pool: keep=False kept no places for the gradient; pass keep=True")
    (places,) = ctx.saved_tensors
    return _max_pool_gradient(gradient, places, ctx.sizes), None, None


def _save_places(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, list[int]], output: torch.Tensor) -> None:
    _, places, ctx.sizes = inputs
    ctx.save_for_backward(places)


def _backward_of_gradient(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (places,) = ctx.saved_tensors
    return _gather(gradient, places, ctx.sizes), None, None


_max_pool.register_autograd(_backward, setup_context=_save)
_max_pool_gradient.register_autograd(_backward_of_gradient, setup_context=_save_places)


def _gather(images: torch.Tensor, places: torch.Tensor, sizes: list[int]) -> torch.Tensor:
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
