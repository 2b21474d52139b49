"""JAX: the core's batch norm with activation and residual as custom calls of XLA, that differentiate and partition.

Under data parallelism every device normalises the images that it holds, with the statistics of the whole batch: only
these, and the gradients' sums, are reduced over devices. The gradient's own gradient is that of the plain expression in
`plain_norm`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from groupwise.backends import plain_norm
from groupwise.backends.jax.handlers import require
from groupwise.backends.jax.mesh import in_any_mesh
from groupwise.backends.jax.operations import Arrays, Parts, Rules, define, tangents_of
from groupwise.backends.jax.partition import call, dimensions, of_the_whole_batch, partitioned
from groupwise.core import epilogues


@dataclass(frozen=True)
class _Norm(plain_norm.Normalization):
    """One way to normalise, and whether it is forward or the gradient.

    Attributes:
        residual: whether one is added; forward it is the last operand.
        backward: whether this is the gradient.
        Others: `Normalization`'s; constant statistics are among the operands.
    """

    residual: bool
    backward: bool = False

    @property
    def masked(self) -> bool:
        """Whether the gradient reads the outputs, or the residual if these do not tell what passes the activation.

        Without a residual what the activation saw is computed anew from the inputs, which is faster.
        """
        return self.residual and self.activation != "linear"

    @property
    def ranks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ranks of operands and results: 4 are images, all else belongs to the channels."""
        if self.backward:
            # inputs, gradient, gamma, beta, mean, variance, extra -> gradients to inputs, beta, gamma, residual
            images = (4,) if self.masked else ()
            return (4, 4, 1, 1, 1, 1, *images), (4, 1, 1, *images)
        # inputs, gamma, beta, mean, variance, residual -> outputs, mean, variance
        return (4, 1, 1, *([] if self.training else [1, 1]), *([4] if self.residual else [])), (4, 1, 1)

    @property
    def known(self) -> int:
        """How many of the tangent's operands are no tangents themselves."""
        return 6 if self.masked else 5

    @property
    def rule(self) -> str:
        """The arrays' dimensions for Shardy."""
        operands, results = ([(rank, rank == 4) for rank in ranks] for ranks in self.ranks)
        return dimensions(operands, results)


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

    It differentiates in every mode, any number of times, and under `jax.vmap` normalises one batch after the other.

    Arguments and results are those of `backends.CoreNorm.normalise`: float32 images.

    Raises:
        ValueError: where a shape or the activation does not fit.
        RuntimeError: where the core is not available.
    """
    require(inputs)
    epilogues.number(activation)
    shape = jnp.shape(inputs)
    operands = [jnp.asarray(operand, "float32") for operand in (inputs, gamma, beta, *(statistics or ()))]
    operands += [] if residual is None else [jnp.asarray(residual, "float32")]
    kind = _Norm(activation, epsilon, statistics is None, residual is not None)
    for operand, rank in zip(operands, kind.ranks[0], strict=True):
        if operand.shape != (shape if rank == 4 else shape[-1:]) or len(shape) != 4:
            raise ValueError(
                f"array of shape {operand.shape}: must be of the inputs' shape {shape}, of rank 4, or of its last size"
            )
    return in_any_mesh(partial(_forward, kind), operands, statistics=2)


# Transformations: forward and gradient are the core's; the tangent, and what differentiates both, plain expressions.


def _results(kind: _Norm, *operands: Any) -> list[jax.ShapeDtypeStruct]:
    images = operands[0].shape
    return [jax.ShapeDtypeStruct(images if rank == 4 else images[3:], jnp.float32) for rank in kind.ranks[1]]


def _forward_jvp(kind: _Norm, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    results = _forward(kind, *operands)
    (inputs, gamma, beta, *others), (of_inputs, of_gamma, of_beta, *of_others) = operands, tangents
    if kind.training:
        statistics, of_statistics = results[1:], _of_moments(inputs, results[1], of_inputs)
    else:
        statistics, of_statistics, of_others = tuple(others[:2]), of_others[:2], of_others[2:]
        of_mean, of_variance = of_statistics
        if of_mean is not None or of_variance is not None:
            to_beta, to_gamma = plain_norm.by_statistics(gamma, statistics[1], kind.epsilon)
            of_beta = _sum(of_beta, None if of_mean is None else to_beta * of_mean)
            of_gamma = _sum(of_gamma, None if of_variance is None else to_gamma * of_variance)
    extra = results[:1] if epilogues.ACTIVATIONS[kind.activation].reads_outputs else operands[-1:]
    known = inputs, gamma, beta, *statistics, *(extra if kind.masked else [])
    moving = _without_none(kind, known, (of_inputs, of_gamma, of_beta, *of_others))
    return results, [*_tangent(replace(kind, backward=True), *known, *moving), *of_statistics]


def _of_moments(inputs: Any, mean: Any, of_inputs: Any) -> Parts:
    """Return the tangents of the batch's mean and variance."""
    if of_inputs is None:
        return None, None
    return of_inputs.mean((0, 1, 2)), 2 * ((inputs - mean) * of_inputs).mean((0, 1, 2))


def _sum(a: Any, b: Any) -> Any:
    """Return the sum of two tangents, of which None is zero."""
    return a if b is None else b if a is None else a + b


def _without_none(kind: _Norm, known: Arrays, moving: Parts) -> list[Any]:
    """Return the tangents of inputs, gamma, beta and perhaps the residual, with zeros for None."""
    inputs, gamma = known[:2]
    like = (inputs, gamma, gamma, *([inputs] if kind.residual else []))
    return [jnp.zeros_like(array) if part is None else part for array, part in zip_longest(like, moving)]


def _gradient_jvp(kind: _Norm, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    return _gradient(kind, *operands), tangents_of(partial(_plain_gradient, kind), operands, tangents)


def _gradient_transpose(kind: _Norm, cotangents: Parts, operands: Parts) -> Parts:
    inputs, _, *rest = operands
    to_inputs, to_beta, to_gamma, *to_residual = cotangents
    moving = _without_none(kind, (inputs, *rest), (to_inputs, to_gamma, to_beta, *to_residual))
    return [None, *_tangent(kind, inputs, *rest, *moving), *(None for _ in rest)]


def _plain_gradient(kind: _Norm, *operands: Any) -> tuple[Any, ...]:
    to_inputs, sums, *to_residual = kind.gradient(*operands)
    return to_inputs, *sums, *(to_residual if kind.masked else [])


def _tangent_jvp(kind: _Norm, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    return _tangent(kind, *operands), tangents_of(partial(_plain_tangent, kind), operands, tangents)


def _tangent_transpose(kind: _Norm, cotangents: Parts, operands: Parts) -> Parts:
    known, moving = operands[: kind.known], operands[kind.known :]
    to_inputs, to_beta, to_gamma, *to_residual = _gradient(kind, known[0], *cotangents, *known[1:])
    pairs = zip(moving, (to_inputs, to_gamma, to_beta, *(to_residual or cotangents)), strict=False)
    return [*(None for _ in known), *(gradient if operand is None else None for operand, gradient in pairs)]


def _plain_tangent(kind: _Norm, *operands: Any) -> tuple[Any, ...]:
    return (kind.tangent(operands[: kind.known], operands[kind.known :]),)


# The operations: the custom calls, partitioned.


@lru_cache(maxsize=4096)
def _operation(kind: _Norm) -> Callable[..., Any]:
    return partitioned(partial(_run, kind), kind.rule)


_forward = define("normalize", Rules(_operation, _results, _forward_jvp))
"""Inputs, gamma, beta, constant statistics, residual -> outputs, mean and variance."""
_gradient = define("normalize_gradient", Rules(_operation, _results, _gradient_jvp, _gradient_transpose))
"""Inputs, outputs' gradient, gamma, beta, mean, variance, extra -> the gradients to inputs, beta, gamma, residual."""
_tangent = define(
    "normalize_tangent",
    Rules(
        lambda kind: partial(_plain_tangent, kind),
        lambda _, inputs, *others: [jax.ShapeDtypeStruct(inputs.shape, jnp.float32)],
        _tangent_jvp,
        _tangent_transpose,
    ),
)
"""The gradient's transpose: inputs, gamma, beta, mean, variance, extra, the tangents of inputs, gamma, beta, residual
-> the outputs' tangent."""


def _call(kind: _Norm, name: str, parts: int, results: Sequence[tuple[Any, ...]], *operands: Any) -> Any:
    """Run one pass of csrc/bindings/jax_norm.cc; `parts`: into how many such parts the batch is cut."""
    bits = np.float64(kind.epsilon).view(np.int64)
    settings = np.array([epilogues.number(kind.activation), parts if kind.training else 0, bits], np.int64)
    return call(f"gw_jax_{name}", [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results], operands, settings)


def _run(kind: _Norm, cut: Any, parts: int, *operands: Any) -> tuple[Any, ...]:
    """Normalise, or its gradient; `cut` names the mesh's axes over which the batch lies in so many `parts`, or None."""
    inputs = operands[0]
    images, channels = inputs.shape, inputs.shape[-1:]
    if kind.backward:
        _, gradient, gamma, beta, mean, variance, *_ = operands
        shapes = [(2, *channels), *([images] if kind.masked else [])]
        sums, *passed = _call(kind, "gradient_sums", parts, shapes, *operands)
        if cut:
            sums = lax.psum(sums, cut)
        # What has passed the activation already passes no other.
        rest = _Norm("linear", kind.epsilon, kind.training, kind.residual) if passed else kind
        upstream = passed[0] if passed else gradient
        (to_inputs,) = _call(rest, "gradient", parts, [images], inputs, upstream, gamma, beta, mean, variance, sums)
        return to_inputs, sums[0], sums[1], *passed
    gamma, beta, *others = operands[1:]
    if kind.training:
        mean, variance = _call(kind, "moments", parts, [channels, channels], inputs)
        if cut:
            mean, variance = of_the_whole_batch(mean, variance, cut)
    else:
        mean, variance, *others = others
    (outputs,) = _call(kind, "normalize", parts, [images], inputs, gamma, beta, mean, variance, *others)
    return outputs, mean, variance
