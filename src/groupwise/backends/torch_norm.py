"""PyTorch: the core's batch norm with activation and residual as custom operations, on PyTorch's own threads.

A gradient is an operation of the core too; its own gradient is that of the plain expression in `norm`.
"""

from typing import Any

import torch
from torch import Tensor

from groupwise import native_norm
from groupwise.backends import norm, torch_core


def normalise(
    inputs: Any,
    gamma: Any,
    beta: Any,
    statistics: tuple[Any, Any] | None,
    epsilon: float,
    residual: Any = None,
    activation: str = "linear",
) -> tuple[Any, Any, Any]:
    """Return activation(normalised inputs + residual), and the mean and biased variance that normalised them.

    Args:
        inputs: (..., channels), float32 on the CPU.
        gamma, beta: (channels,). statistics: constant mean and variance, (channels,); None are the batch's, through
            which the gradient goes.
        epsilon: added to the variance.
        residual: of the inputs' shape, or None. activation: one of `native.ACTIVATIONS`.

    Raises:
        ValueError: where a type or shape does not fit.
    """
    mean, variance = statistics or (None, None)
    outputs, mean, variance = torch.ops.groupwise.normalize(
        inputs, gamma, beta, mean, variance, residual, activation, epsilon
    )
    return outputs, mean.detach(), variance.detach()


def _addresses(tensors: dict[str, Tensor | None]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}


def _contiguous(tensors: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Return the tensors as contiguous memory, `inputs` first; images are of its shape, the others of its channels."""
    shape = next(iter(tensors.values())).shape  # type: ignore[union-attr]
    for name, tensor in tensors.items():
        wanted = shape if name in ("inputs", "residual", "gradient", "outputs") else shape[-1:]
        if tensor is not None and (tensor.shape != wanted or tensor.dtype != torch.float32):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} and type {tensor.dtype}: "
                f"must be float32 of shape {tuple(wanted)}"
            )
    return {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}


def _run(passes: int, tensors: dict[str, Tensor | None], activation: str, epsilon: float, training: bool) -> None:
    inputs = tensors["inputs"]
    assert inputs is not None
    channels = inputs.shape[-1]
    pixels = inputs.numel() // channels
    count, executor = pixels if training else 0, torch_core.executor()
    native_norm.run(
        passes,
        pixels,
        channels,
        activation=activation,
        epsilon=epsilon,
        count=count,
        executor=executor,
        **_addresses(tensors),
    )


def _normalize(
    inputs: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    activation: str,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    training = mean is None
    given: dict[str, Tensor | None] = {"inputs": inputs, "gamma": gamma, "beta": beta, "residual": residual}
    tensors = _contiguous(given | {"mean": mean, "variance": variance})
    # An operation returns nothing of what it was given.
    mean, variance = (gamma.new_empty(gamma.shape) if s is None else s.clone() for s in (mean, variance))
    outputs = tensors["inputs"].new_empty(inputs.shape)  # type: ignore[union-attr]
    written = {"mean": mean, "variance": variance, "outputs": outputs}
    passes = native_norm.NORMALIZE | (native_norm.MOMENTS if training else 0)
    _run(passes, {**tensors, **written}, activation, epsilon, training)
    return outputs, mean, variance


def _normalize_gradient(
    inputs: Tensor,
    gradient: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    variance: Tensor,
    outputs: Tensor | None,
    activation: str,
    epsilon: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    given: dict[str, Tensor | None] = {"inputs": inputs, "gradient": gradient, "gamma": gamma, "beta": beta}
    tensors = _contiguous(given | {"mean": mean, "variance": variance, "outputs": outputs})
    to_inputs, sums, to_residual = _gradient_shapes(inputs, gamma, outputs)
    written = {"inputs_gradient": to_inputs, "sums": sums}
    if outputs is not None:
        written["residual_gradient"] = to_residual
    passes = native_norm.GRADIENT_SUMS | native_norm.GRADIENT
    _run(passes, {**tensors, **written}, activation, epsilon, training)
    return to_inputs, sums, to_residual


def _gradient_shapes(inputs: Tensor, gamma: Tensor, outputs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    to_residual = inputs.new_empty(0 if outputs is None else inputs.shape)
    return inputs.new_empty(inputs.shape), gamma.new_empty(2, gamma.shape[0]), to_residual


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    images, gamma, beta, mean, _, residual, ctx.activation, ctx.epsilon = inputs
    ctx.training, ctx.has_residual = mean is None, residual is not None
    # Without a residual the activation's mask is computed anew, which is faster than reading the outputs.
    reads_outputs = ctx.has_residual and ctx.activation != "linear"
    ctx.save_for_backward(images, gamma, beta, *output[1:], output[0] if reads_outputs else None)


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    inputs, gamma, beta, mean, variance, outputs = ctx.saved_tensors
    to_inputs, sums, to_residual = torch.ops.groupwise.normalize_gradient(
        inputs, gradient, gamma, beta, mean, variance, outputs, ctx.activation, ctx.epsilon, ctx.training
    )
    if outputs is None:
        to_residual = gradient
    return to_inputs, sums[1], sums[0], None, None, to_residual if ctx.has_residual else None, None, None


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.activation, ctx.epsilon, ctx.training = inputs
    ctx.save_for_backward(*tensors)


def _backward_gradient(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    inputs, gradient, gamma, beta, mean, variance, outputs = ctx.saved_tensors
    options = {"activation": ctx.activation, "epsilon": ctx.epsilon, "training": ctx.training}

    def plain(inputs: Tensor, gradient: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        to_inputs, sums, to_residual = norm.gradient(inputs, gradient, gamma, beta, mean, variance, outputs, **options)
        return to_inputs, sums, to_residual if outputs is not None else to_residual.new_empty(0)

    _, pull = torch.func.vjp(plain, inputs, gradient, gamma)
    return *pull(gradients), *[None] * 7


def _define(name: str, compute: Any, schema: str, fake: Any, save: Any, backward: Any) -> None:
    operation = torch.library.custom_op(
        f"groupwise::{name}", compute, mutates_args=(), device_types="cpu", schema=schema
    )
    operation.register_fake(fake)
    operation.register_autograd(backward, setup_context=save)


_define(
    "normalize",
    _normalize,
    "(Tensor inputs, Tensor gamma, Tensor beta, Tensor? mean, Tensor? variance, Tensor? residual, str activation, "
    "float epsilon) -> (Tensor, Tensor, Tensor)",
    lambda inputs, gamma, *_: (inputs.new_empty(inputs.shape), torch.empty_like(gamma), torch.empty_like(gamma)),
    _save,
    _backward,
)
_define(
    "normalize_gradient",
    _normalize_gradient,
    "(Tensor inputs, Tensor gradient, Tensor gamma, Tensor beta, Tensor mean, Tensor variance, Tensor? outputs, "
    "str activation, float epsilon, bool training) -> (Tensor, Tensor, Tensor)",
    lambda inputs, gradient, gamma, beta, mean, variance, outputs, *_: _gradient_shapes(inputs, gamma, outputs),
    _save_gradient,
    _backward_gradient,
)
