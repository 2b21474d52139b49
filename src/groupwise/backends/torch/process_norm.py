"""PyTorch: batch norm over the batches of all processes: the core's passes, and sums over processes between them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from groupwise.backends.torch import norm
from groupwise.backends.torch.passes import executor
from groupwise.core import epilogues
from groupwise.core import norm as passes

_is_wanted = False


@contextmanager
def synchronized(wanted: bool) -> Iterator[None]:
    """While it is entered, let batch norms in training see the batches of all processes, where that is wanted."""
    global _is_wanted
    before, _is_wanted = _is_wanted, wanted
    try:
        yield
    finally:
        _is_wanted = before


def over_processes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what normalises by the batches of all processes as `function` does by this one's, where that is wanted."""
    if not _is_wanted:
        return function
    return _in_core if function is norm.normalise else _plain


def _in_core(
    inputs: Any,
    gamma: Any,
    beta: Any,
    statistics: None,
    epsilon: float,
    residual: Any = None,
    activation: str = "linear",
) -> tuple[Any, Any, Any]:
    outputs, mean, variance = _Normalize.apply(inputs, gamma, beta, residual, activation, epsilon)
    return outputs, mean, variance


class _Normalize(Function):
    """`norm.normalise` of what several processes hold."""

    @staticmethod
    def forward(
        context: Any, inputs: Any, gamma: Any, beta: Any, residual: Any, activation: str, epsilon: float
    ) -> Any:
        inputs, residual = inputs.contiguous(), None if residual is None else residual.contiguous()
        mean, variance, outputs = torch.empty_like(gamma), torch.empty_like(gamma), torch.empty_like(inputs)
        _run(passes.MOMENTS, inputs, 1, epsilon, mean=mean, variance=variance)
        count, mean, variance = _statistics_of_all(inputs.numel() // len(gamma), mean, variance)
        context.options, context.has_residual = (count, epsilon, activation), residual is not None
        given = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
        _run(passes.NORMALIZE, inputs, count, epsilon, activation, residual=residual, outputs=outputs, **given)
        extra = None
        if residual is not None and activation != "linear":
            extra = outputs if epilogues.ACTIVATIONS[activation].reads_outputs else residual
        context.save_for_backward(inputs, *given.values(), extra)
        context.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Any, *_: Any) -> Any:
        inputs, gamma, beta, mean, variance, extra = context.saved_tensors
        count, epsilon, activation = context.options
        gradient, given = gradient.contiguous(), {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
        sums, to_inputs = gamma.new_empty(2, len(gamma)), torch.empty_like(inputs)
        more = {}
        if extra is not None:
            seen = "outputs" if epilogues.ACTIVATIONS[activation].reads_outputs else "residual"
            more = {seen: extra, "residual_gradient": torch.empty_like(inputs)}
        _run(passes.GRADIENT_SUMS, inputs, count, epsilon, activation, gradient=gradient, sums=sums, **more, **given)
        if more:
            # What passes the activation is known now.
            gradient, activation = more["residual_gradient"], "linear"
        own = sums.clone()  # what learns is averaged with the other weights' gradients
        distributed.all_reduce(sums)
        _run(
            passes.GRADIENT,
            *(inputs, count, epsilon, activation),
            gradient=gradient,
            sums=sums,
            inputs_gradient=to_inputs,
            **given,
        )
        return to_inputs, own[1], own[0], gradient if context.has_residual else None, None, None


def _run(
    pass_: int, inputs: Tensor, count: int, epsilon: float, activation: str = "linear", **tensors: Tensor | None
) -> None:
    channels = inputs.shape[-1]
    passes.run(
        pass_,
        inputs.numel() // channels,
        channels,
        activation=activation,
        epsilon=epsilon,
        count=count,
        executor=executor(),
        inputs=inputs.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
    )


def _statistics_of_all(pixels: int, mean: Tensor, variance: Tensor) -> tuple[int, Tensor, Tensor]:
    """Return how many pixels all processes have, and their mean and biased variance (Chan, Golub, LeVeque 1983)."""
    own = torch.cat([mean.new_tensor([pixels], dtype=torch.float64), mean.double(), variance.double()])
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    counts, means, variances = torch.stack(parts).split([1, len(mean), len(mean)], dim=1)
    count = counts.sum()
    of_all = (counts * means).sum(0) / count
    spread = (counts * (variances + (means - of_all) ** 2)).sum(0) / count
    return int(count), of_all.to(mean.dtype), spread.to(mean.dtype)


def _plain(inputs: Any, gamma: Any, beta: Any, statistics: None, epsilon: float) -> tuple[Any, Any, Any]:
    """Return what `_in_core` does, by PyTorch's own operations: on a GPU, and of half precision."""
    wide = inputs.to(gamma.dtype)
    axes = tuple(range(inputs.ndim - 1))
    mean = _Mean.apply(wide.mean(axes))
    variance = _Mean.apply((wide - mean).square().mean(axes))
    outputs = (wide - mean) * (torch.rsqrt(variance + epsilon) * gamma) + beta
    return outputs.to(inputs.dtype), mean.detach(), variance.detach()


class _Mean(Function):
    """The mean over processes that have equally many pixels, as those of a training do."""

    @staticmethod
    def forward(context: Any, values: Any) -> Any:
        return _mean(values)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Any) -> Any:
        return _mean(gradient)


def _mean(values: Tensor) -> Tensor:
    total = values.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
