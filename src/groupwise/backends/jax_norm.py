"""JAX: the core's batch norm with activation and residual as custom calls of XLA, that differentiate and partition.

Under data parallelism every device normalises the images that it holds, with the statistics of the whole batch: only
these, and the gradients' sums, are reduced over devices. The gradient's own gradient is that of the plain expression in
`norm`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Partition

from groupwise import native
from groupwise.backends import jax_core, norm
from groupwise.backends.jax_mesh import custom_partitioning, in_any_mesh, is_cut_evenly, vary, varying_axes, within


@dataclass(frozen=True)
class _Norm:
    """One way to normalise, and whether it is forward or the gradient.

    Attributes:
        training: whether the statistics are the batch's, not constants among the operands.
        residual: whether one is added; forward it is the last operand.
        backward: whether this is the gradient.
    """

    activation: str
    epsilon: float
    training: bool
    residual: bool
    backward: bool = False

    @property
    def masked(self) -> bool:
        """Whether the gradient reads the outputs; without a residual their mask is computed anew, which is faster."""
        return self.residual and self.activation != "linear"

    @property
    def ranks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ranks of operands and results: 4 are images, all else belongs to the channels."""
        if self.backward:
            # inputs, gradient, gamma, beta, mean, variance, outputs -> inputs' gradient, sums, residual's gradient
            images = (4,) if self.masked else ()
            return (4, 4, 1, 1, 1, 1, *images), (4, 2, *images)
        # inputs, gamma, beta, mean, variance, residual -> outputs, mean, variance
        return (4, 1, 1, *([] if self.training else [1, 1]), *([4] if self.residual else [])), (4, 1, 1)

    @property
    def rule(self) -> str:
        """The arrays' dimensions for Shardy: only the batch has one name everywhere, and stays cut over devices."""

        def text(prefix: str, ranks: Sequence[int]) -> str:
            names = [[f"{prefix}{index}_{axis}" for axis in range(rank)] for index, rank in enumerate(ranks)]
            return ", ".join(" ".join(["n", *axes[1:]] if len(axes) == 4 else axes) for axes in names)

        operands, results = self.ranks
        return f"{text('a', operands)} -> {text('b', results)}"


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

    It differentiates in reverse mode, any number of times, and under `jax.vmap` normalises one batch after the other.

    Args:
        inputs: (batch, height, width, channels), float32.
        gamma, beta: (channels,). statistics: constant mean and variance, (channels,); None are the batch's, through
            which the gradient goes.
        epsilon: added to the variance.
        residual: of the inputs' shape, or None. activation: one of `native.ACTIVATIONS`.

    Raises:
        ValueError: where a shape or the activation does not fit.
        RuntimeError: where the core is not available.
    """
    if not jax_core.is_available():
        raise RuntimeError(f"the core is not available here: GROUPWISE_CORE is 0, or JAX cannot load {native.path()}")
    if activation not in native.ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: must be one of {', '.join(native.ACTIVATIONS)}")
    shape = jnp.shape(inputs)
    operands = [jnp.asarray(operand, "float32") for operand in (inputs, gamma, beta, *(statistics or ()))]
    operands += [] if residual is None else [jnp.asarray(residual, "float32")]
    kind = _Norm(activation, epsilon, statistics is None, residual is not None)
    for operand, rank in zip(operands, kind.ranks[0], strict=True):
        if operand.shape != (shape if rank == 4 else shape[-1:]) or len(shape) != 4:
            raise ValueError(
                f"array of shape {operand.shape}: must be of the inputs' shape {shape}, of rank 4, or of its last size"
            )
    outputs, mean, variance = in_any_mesh(partial(_forward, kind), operands, statistics=2)
    return outputs, lax.stop_gradient(mean), lax.stop_gradient(variance)


# Differentiation.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(kind: _Norm, *operands: Any) -> tuple[Any, Any, Any]:
    """Outputs, mean and variance; these two have no gradient."""
    return _operation(kind)(*operands)


def _forward_saving(kind: _Norm, *operands: Any) -> tuple[Any, Any]:
    results = _forward(kind, *operands)
    return results, (operands[:3], results[1:], results[:1] if kind.masked else ())


def _forward_gradients(kind: _Norm, saved: Any, gradients: Any) -> tuple[Any, ...]:
    (inputs, gamma, beta), statistics, outputs = saved
    backward = _Norm(kind.activation, kind.epsilon, kind.training, kind.residual, backward=True)
    gradient = gradients[0]
    to_inputs, sums, *passed = _gradient(backward, inputs, gradient, gamma, beta, *statistics, *outputs)
    constants = () if kind.training else tuple(map(jnp.zeros_like, statistics))
    to_residual = (passed or [gradient]) if kind.residual else ()
    return to_inputs, sums[1], sums[0], *constants, *to_residual


_forward.defvjp(_forward_saving, _forward_gradients)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(kind: _Norm, *operands: Any) -> tuple[Any, ...]:
    return _operation(kind)(*operands)


def _plain_gradient(kind: _Norm, *operands: Any) -> tuple[Any, ...]:
    inputs, gradient, gamma, beta, mean, variance, *outputs = operands
    options: dict[str, Any] = {"activation": kind.activation, "epsilon": kind.epsilon, "training": kind.training}
    results = norm.gradient(inputs, gradient, gamma, beta, mean, variance, *outputs, **options)
    return results if kind.masked else results[:2]


_gradient.defvjp(
    lambda kind, *operands: (_gradient(kind, *operands), operands),
    lambda kind, operands, gradients: jax.vjp(partial(_plain_gradient, kind), *operands)[1](gradients),
)


# The operations: the custom calls, partitioned, batched.


@lru_cache(maxsize=4096)
def _operation(kind: _Norm) -> Callable[..., Any]:
    partitioned = custom_partitioning()(partial(_run, kind, None, 1))
    partitioned.def_partition(
        partition=partial(_partition, kind),
        infer_sharding_from_operands=lambda mesh, operands, _: _shardings(kind, mesh, operands)[0],
        sharding_rule=kind.rule,
    )
    operation = custom_vmap(partitioned)
    operation.def_vmap(partial(_batch, kind))
    return jax.jit(operation, inline=True)


def _call(kind: _Norm, name: str, parts: int, results: Sequence[tuple[Any, ...]], *operands: Any) -> Any:
    """Run one pass of csrc/jax_norm.cc; `parts`: into how many such parts the batch is cut."""
    axes = frozenset[str]().union(*map(varying_axes, operands))
    call = jax.ffi.ffi_call(f"gw_jax_{name}", [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results])
    bits = np.float64(kind.epsilon).view(np.int64)
    settings = np.array([native.ACTIVATIONS.index(kind.activation), parts if kind.training else 0, bits], np.int64)
    return [vary(result, axes) for result in call(*(vary(o, axes) for o in operands), settings=settings)]


def _run(kind: _Norm, cut: Any, parts: int, *operands: Any) -> tuple[Any, ...]:
    """Normalise, or its gradient; `cut` names the mesh's axes over which the batch lies in so many `parts`, or None."""
    inputs = operands[0]
    images, channels = inputs.shape, inputs.shape[-1:]
    if kind.backward:
        _, gradient, gamma, beta, mean, variance, *outputs = operands
        shapes = [(2, *channels), *([images] if kind.masked else [])]
        sums, *passed = _call(kind, "gradient_sums", parts, shapes, *operands)
        if cut:
            sums = lax.psum(sums, cut)
        # What has passed the activation already passes no other.
        rest = _Norm("linear", kind.epsilon, kind.training, kind.residual) if passed else kind
        upstream = passed[0] if passed else gradient
        (to_inputs,) = _call(rest, "gradient", parts, [images], inputs, upstream, gamma, beta, mean, variance, sums)
        return to_inputs, sums, *passed
    gamma, beta, *others = operands[1:]
    if kind.training:
        mean, variance = _call(kind, "moments", parts, [channels, channels], inputs)
        if cut:
            # Chan's formula for parts of one size.
            part = mean
            mean = lax.pmean(part, cut)
            variance = lax.pmean(variance + (part - mean) ** 2, cut)
    else:
        mean, variance, *others = others
    (outputs,) = _call(kind, "normalize", parts, [images], inputs, gamma, beta, mean, variance, *others)
    return outputs, mean, variance


def _batch(kind: _Norm, size: int, mapped: Sequence[bool], *operands: Any) -> tuple[Any, Any]:
    """Normalise one batch after the other: each has its own statistics."""
    results = jax.vmap(sequential_vmap(_operation(kind)), [0 if m else None for m in mapped])(*operands)
    return results, tuple(True for _ in results)


def _shardings(kind: _Norm, mesh: Any, operands: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the results' shardings and the operands': every image's batch as the first one is cut, all else whole."""
    images = [operand for operand, rank in zip(operands, kind.ranks[0], strict=True) if rank == 4]
    images = [image for image in images if isinstance(image.sharding, NamedSharding)]
    mesh = images[0].sharding.mesh if images else mesh
    cut = next((image.sharding.spec[0] for image in images if is_cut_evenly(image)), None)
    by_batch, whole = NamedSharding(mesh, Partition(cut)), NamedSharding(mesh, Partition())
    operands_, results = (tuple(by_batch if rank == 4 else whole for rank in ranks) for ranks in kind.ranks)
    return results, operands_


def _partition(kind: _Norm, mesh: Any, operands: Sequence[Any], _: Any) -> tuple[Any, ...]:
    results, shardings = _shardings(kind, mesh, operands)
    mesh, cut = shardings[0].mesh, shardings[0].spec[0]
    axes = () if cut is None else (cut,) if isinstance(cut, str) else cut
    parts = prod(mesh.shape[axis] for axis in axes)

    def run(*arrays: Any) -> Any:
        with within(mesh):
            return _run(kind, cut, parts, *arrays)

    return mesh, run, results, shardings
