"""PyTorch: the core's batch norm with activation and residual as custom operations, on PyTorch's own threads.

A gradient is an operation of the core too; its own gradient is that of the plain expression in `plain_norm`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from groupwise.backends import plain_norm
from groupwise.backends.torch.operations import Rules, checked, define, tangents_of, total
from groupwise.backends.torch.passes import executor, passed
from groupwise.core import epilogues, norm


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

    Arguments and results are those of `backends.CoreNorm.normalise`: float32 on the CPU.

    Raises:
        ValueError: where a type or shape does not fit.
    """
    mean, variance = statistics or (None, None)
    outputs, mean, variance = _NORMALIZE(inputs, gamma, beta, mean, variance, residual, activation, epsilon)
    return outputs, mean, variance


_FORWARD = ("inputs", "gamma", "beta", "mean", "variance", "residual")
_GRADIENT = ("inputs", "gradient", "gamma", "beta", "mean", "variance", "extra")
"""The tensors of the operations' schemas, below."""
_IMAGES = ("inputs", "gradient", "residual", "extra")


def _checked(names: tuple[str, ...], tensors: Sequence[Tensor | None]) -> dict[str, Any]:
    """Return tensors by name, `inputs` first; images are of its shape, the others of its channels."""
    shape = tensors[0].shape  # type: ignore[union-attr]
    pairs = zip(names, tensors, strict=True)
    return {name: checked(name, tensor, shape if name in _IMAGES else shape[-1:]) for name, tensor in pairs}


def _run(passes: int, tensors: dict[str, Any], activation: str, epsilon: float, training: bool) -> None:
    inputs = tensors["inputs"]
    channels = inputs.shape[-1]
    pixels = inputs.numel() // channels
    norm.run(
        passes,
        pixels,
        channels,
        activation=activation,
        epsilon=epsilon,
        count=pixels if training else 0,
        executor=executor(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
    )


def _normalize(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, activation, epsilon = arguments
    tensors = _checked(_FORWARD, given)
    inputs, gamma, training = tensors["inputs"], tensors["gamma"], tensors["mean"] is None
    # An operation returns nothing of what it was given.
    mean, variance = (torch.empty_like(gamma) if training else tensors[s].clone() for s in ("mean", "variance"))
    outputs = torch.empty_like(inputs)
    tensors |= {"mean": mean, "variance": variance, "outputs": outputs}
    _run(norm.NORMALIZE | (norm.MOMENTS if training else 0), tensors, activation, epsilon, training)
    return outputs, mean, variance


def _normalize_gradient(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *given, activation, epsilon, training = arguments
    tensors = _checked(_GRADIENT, given)
    extra = tensors.pop("extra")
    to_inputs, sums, to_residual = _gradient_shapes(tensors["inputs"], tensors["gamma"], extra)
    tensors |= {"inputs_gradient": to_inputs, "sums": sums}
    if extra is not None:
        reads_outputs = epilogues.ACTIVATIONS[activation].reads_outputs
        tensors |= {"outputs" if reads_outputs else "residual": extra, "residual_gradient": to_residual}
    _run(norm.GRADIENT_SUMS | norm.GRADIENT, tensors, activation, epsilon, training)
    return to_inputs, sums, to_residual


def _gradient_shapes(inputs: Tensor, gamma: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    to_inputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
    to_residual = inputs.new_empty(0) if extra is None else torch.empty_like(to_inputs)
    return to_inputs, gamma.new_empty(2, gamma.shape[0]), to_residual


def _save(context: Any, arguments: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor]) -> None:
    inputs, gamma, beta, mean, variance, residual, context.activation, context.epsilon = arguments
    context.training, context.has_residual = mean is None, residual is not None
    outputs, *statistics = results if context.training else (results[0], mean, variance)
    extra = None
    # Without a residual what the activation saw is computed anew from the inputs, which is faster.
    if context.has_residual and context.activation != "linear":
        extra = outputs if epilogues.ACTIVATIONS[context.activation].reads_outputs else residual
    context.save_for_backward(inputs, gamma, beta, *statistics, extra)


def _backward(context: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 8
    inputs, gamma, beta, mean, variance, extra = context.saved_tensors
    to_inputs, sums, to_residual = _NORMALIZE_GRADIENT(
        inputs, gradient, gamma, beta, mean, variance, extra, context.activation, context.epsilon, context.training
    )
    if extra is None:
        to_residual = gradient
    to_mean = to_variance = None
    if any(context.needs_input_grad[4:6]):
        to_beta, to_gamma = plain_norm.by_statistics(gamma, variance, context.epsilon)
        to_mean, to_variance = to_beta * sums[0], to_gamma * sums[1]
    return to_inputs, sums[1], sums[0], to_mean, to_variance, to_residual if context.has_residual else None, None, None


def _tangent(
    arguments: Sequence[Any], tangents: Sequence[Tensor | None], outputs: Tensor, *statistics: Tensor
) -> tuple[Tensor | None, ...]:
    inputs, gamma, beta, *constants, residual, activation, epsilon = arguments
    of_inputs, of_gamma, of_beta, of_mean, of_variance, of_residual, *_ = tangents
    training = constants[0] is None
    if of_mean is not None or of_variance is not None:
        to_beta, to_gamma = plain_norm.by_statistics(gamma, constants[1], epsilon)
        of_beta = total([of_beta, None if of_mean is None else to_beta * of_mean])
        of_gamma = total([of_gamma, None if of_variance is None else to_gamma * of_variance])
    parts = [of_residual]
    if of_inputs is not None:
        # What normalising does to a small change is symmetric: its gradient is its tangent.
        given = inputs, of_inputs, gamma, beta, *(statistics if training else constants)
        parts.append(_NORMALIZE_GRADIENT(*given, None, "linear", epsilon, training)[0])
    if of_gamma is not None or of_beta is not None:
        scale, shift = (torch.zeros_like(gamma) if t is None else t for t in (of_gamma, of_beta))
        parts.append(_NORMALIZE(inputs, scale, shift, *constants, None, "linear", epsilon)[0])
    seen = outputs
    if not epilogues.ACTIVATIONS[activation].reads_outputs:
        seen = _NORMALIZE(inputs, gamma, beta, *constants, residual, "linear", epsilon)[0]
    return passed(total(parts), seen, activation), None, None


def _save_gradient(context: Any, arguments: tuple[Any, ...], results: Any) -> None:
    *tensors, context.activation, context.epsilon, context.training = arguments
    context.save_for_backward(*tensors)


def _backward_gradient(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    options = context.activation, context.epsilon, context.training
    given = [tensor for tensor in context.saved_tensors if tensor is not None]
    extra = [None] * (len(context.saved_tensors) - len(given))
    results, pull = torch.func.vjp(lambda *tensors: _plain_gradient(*tensors, *extra, *options), *given)
    pairs = zip(gradients, results, strict=True)
    return *pull(tuple(torch.zeros_like(r) if g is None else g for g, r in pairs)), *extra, *[None] * 3


def _tangent_of_gradient(arguments: Sequence[Any], tangents: Sequence[Tensor | None], *_: Tensor) -> Any:
    return tangents_of(_plain_gradient, arguments, tangents)


def _plain_gradient(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_normalize_gradient` does by PyTorch's own operations."""
    *tensors, activation, epsilon, training = arguments
    to_inputs, sums, to_residual = plain_norm.Normalization(activation, epsilon, training).gradient(*tensors)
    return to_inputs, sums, to_residual.new_empty(0) if tensors[6] is None else to_residual


_NORMALIZE = define(
    "normalize",
    "(Tensor inputs, Tensor gamma, Tensor beta, Tensor? mean, Tensor? variance, Tensor? residual, str activation, "
    "float epsilon) -> (Tensor, Tensor, Tensor)",
    Rules(
        compute=_normalize,
        shapes=lambda inputs, gamma, *_: (
            inputs.new_empty(inputs.shape),
            torch.empty_like(gamma),
            torch.empty_like(gamma),
        ),
        save=_save,
        backward=_backward,
        tangent=_tangent,
        constants=(1, 2),
    ),
)
_NORMALIZE_GRADIENT = define(
    "normalize_gradient",
    "(Tensor inputs, Tensor gradient, Tensor gamma, Tensor beta, Tensor mean, Tensor variance, Tensor? extra, "
    "str activation, float epsilon, bool training) -> (Tensor, Tensor, Tensor)",
    Rules(
        compute=_normalize_gradient,
        shapes=lambda inputs, gradient, gamma, beta, mean, variance, extra, *_: _gradient_shapes(inputs, gamma, extra),
        save=_save_gradient,
        backward=_backward_gradient,
        tangent=_tangent_of_gradient,
    ),
)
