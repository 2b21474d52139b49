"""JAX: the C core as custom calls of XLA, on XLA's own threads, that differentiate, batch and partition.

A convolution and its two gradients are the three partial derivatives of one sum over inputs, kernel and outputs, linear
in each: the gradient of one pass is the two others.
"""

import ctypes
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Partition

from groupwise import native
from groupwise.backends.jax_mesh import custom_partitioning, in_any_mesh, is_cut_evenly, vary, varying_axes, within
from groupwise.spec import ConvSpec

_HANDLERS = ("gw_jax_forward", "gw_jax_input_gradient", "gw_jax_kernel_gradient")
_POOLING_HANDLERS = ("gw_jax_max_pool", "gw_jax_max_pool_gradient")
_NORM_HANDLERS = ("gw_jax_moments", "gw_jax_normalize", "gw_jax_gradient_sums", "gw_jax_gradient")
# What may follow inputs, kernel and outputs in native.ROLES: a forward pass's further operands.
_BIAS, _RESIDUAL = 3, 4
# Each role's dimensions, as Shardy names them. Only the batch has one name everywhere: it alone stays cut over devices.
_DIMENSIONS = ("n h w c", "i j k l", "n p q o", "b", "n r s t")


@dataclass(frozen=True)
class _Pass:
    """One pass of a convolution over any batch, and what follows a forward one.

    Attributes:
        number: one of `native.PASSES`.
        sizes: those of `native.sizes` without the first, the batch.
        extras: a forward pass's operands after inputs and kernel: _BIAS, _RESIDUAL, both or none.
        activation: one of `native.ACTIVATIONS`.
    """

    number: int
    sizes: tuple[int, ...]
    extras: tuple[int, ...] = ()
    activation: str = "linear"

    @property
    def operands(self) -> tuple[int, ...]:
        """The roles of its operands; the first one always has a batch."""
        return (*native.ROLES[self.number][:2], *self.extras)

    @property
    def result(self) -> int:
        """The role of its result."""
        return native.ROLES[self.number][2]

    @property
    def settings(self) -> np.ndarray:
        """What csrc/jax.cc wants to know beside the shapes."""
        return np.array([*self.sizes[8:], native.ACTIVATIONS.index(self.activation)], np.int64)

    def shapes(self, batch: Any) -> tuple[tuple[Any, ...], ...]:
        """Return every role's shape."""
        inputs, kernel, outputs = native.shapes((batch, *self.sizes))
        return inputs, kernel, outputs, outputs[3:], outputs


def _has_batch(role: int) -> bool:
    return _DIMENSIONS[role].startswith("n")


def is_available() -> bool:
    """Return whether the core is wanted, there, and JAX takes it; where JAX does not, one warning says why."""
    return native.is_available() and _register()


def require() -> None:
    """Raise RuntimeError where the core is not available; without this, XLA knows none of its custom calls."""
    if not is_available():
        raise RuntimeError(f"the core is not available here: GROUPWISE_CORE is 0, or JAX cannot load {native.path()}")


@cache
def _register() -> bool:
    try:
        # Before the CPU has started, a handler that XLA refuses would keep it from starting; afterwards this raises.
        jax.devices("cpu")
        library = ctypes.CDLL(str(native.path("groupwise_jax")))
        for name in (*_HANDLERS, *_POOLING_HANDLERS, *_NORM_HANDLERS):
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
        custom_partitioning()
    except (OSError, ImportError, AttributeError, RuntimeError) as error:
        warnings.warn(
            f"groupwise runs on XLA's own convolutions: JAX {jax.__version__} does not take the C core: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def convolve(
    inputs: Any,
    kernel: Any,
    spec: ConvSpec,
    bias: Any = None,
    residual: Any = None,
    activation: str = "linear",
) -> Any:
    """Return activation(convolution + bias + residual), computed in float32 by the core.

    It differentiates (in reverse mode, any number of times), batches under `jax.vmap`, and stays where it is under
    data parallelism: a batch cut over devices is convolved where it lies, and only the kernel's gradient is summed.

    Args:
        inputs: (batch, height, width, in_channels), of any floating-point type.
        kernel: (kernel height, kernel width, in_channels // groups, out_channels).
        spec: the convolution.
        bias: (out_channels,) or None.
        residual: of the outputs' shape, or None.
        activation: "linear", "relu" or "relu6".

    Returns:
        (batch, out height, out width, out_channels), of the spec's type.

    Raises:
        ValueError: where a shape is not the spec's, or the activation is none of the three.
        RuntimeError: where the core is not available.

    Examples:
        >>> spec = ConvSpec.of((1, 1, 1, 2), (1, 1, 1, 2), groups=2)
        >>> convolve(jnp.array([[[[2.0, 3.0]]]]), jnp.full((1, 1, 1, 2), 10.0), spec).ravel().tolist()
        [20.0, 30.0]
    """
    require()
    native.activation_number(activation)
    extras = {role: value for role, value in ((_BIAS, bias), (_RESIDUAL, residual)) if value is not None}
    operands = [jnp.asarray(operand, "float32") for operand in (inputs, kernel, *extras.values())]
    batch, *image = operands[0].shape
    forward = _Pass(native.FORWARD, native.sizes(spec, (1, *image))[1:], tuple(extras), activation)
    shapes = forward.shapes(batch)
    for role, operand in zip(forward.operands, operands, strict=True):
        if operand.shape != shapes[role]:
            name = ("inputs", "kernel", "outputs", "bias", "residual")[role]
            raise ValueError(f"{name} of shape {operand.shape}: must be of shape {shapes[role]}")
    return in_any_mesh(partial(_forward, forward), operands).astype(spec.dtype)


# Differentiation.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(forward: _Pass, *operands: Any) -> Any:
    """A forward pass and what follows it."""
    return _operation(forward)(*operands)


def _forward_saving(forward: _Pass, *operands: Any) -> tuple[Any, Any]:
    outputs = _forward(forward, *operands)
    return outputs, (operands[:2], outputs if forward.activation != "linear" else None)


def _forward_gradients(forward: _Pass, saved: Any, gradient: Any) -> tuple[Any, ...]:
    (inputs, kernel), outputs = saved
    if forward.activation != "linear":
        passes = outputs > 0 if forward.activation == "relu" else (outputs > 0) & (outputs < 6)
        gradient = jnp.where(passes, gradient, 0)
    return (
        _linear(_Pass(native.INPUT_GRADIENT, forward.sizes), gradient, kernel),
        _linear(_Pass(native.KERNEL_GRADIENT, forward.sizes), inputs, gradient),
        *(gradient.sum((0, 1, 2)) if role == _BIAS else gradient for role in forward.extras),
    )


_forward.defvjp(_forward_saving, _forward_gradients)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(pass_: _Pass, a: Any, b: Any) -> Any:
    """One pass alone, linear in both of its operands."""
    return _operation(pass_)(a, b)


def _linear_gradients(pass_: _Pass, saved: tuple[Any, Any], gradient: Any) -> tuple[Any, ...]:
    arrays = dict(zip((*pass_.operands, pass_.result), (*saved, gradient), strict=True))
    by_result = {_Pass(number, pass_.sizes).result: _Pass(number, pass_.sizes) for number in native.PASSES}
    others = [by_result[role] for role in pass_.operands]
    return tuple(_linear(other, *(arrays[role] for role in other.operands)) for other in others)


_linear.defvjp(lambda pass_, a, b: (_linear(pass_, a, b), (a, b)), _linear_gradients)


# One pass as an operation: the custom call, partitioned, batched.


@lru_cache(maxsize=4096)
def _operation(pass_: _Pass) -> Callable[..., Any]:
    partitioned = custom_partitioning()(partial(_call, pass_))
    partitioned.def_partition(
        partition=partial(_partition, pass_),
        infer_sharding_from_operands=lambda mesh, operands, _: _shardings(pass_, mesh, operands)[0],
        sharding_rule=f"{', '.join(_DIMENSIONS[role] for role in pass_.operands)} -> {_DIMENSIONS[pass_.result]}",
    )
    operation = custom_vmap(partitioned)
    operation.def_vmap(partial(_batch, pass_))
    # Compiled, so that a call outside any jax.jit finds its executable at once.
    return jax.jit(operation, inline=True)


def _call(pass_: _Pass, *operands: Any) -> Any:
    axes = frozenset[str]().union(*map(varying_axes, operands))
    shape = pass_.shapes(operands[0].shape[0])[pass_.result]
    call = jax.ffi.ffi_call(_HANDLERS[pass_.number], jax.ShapeDtypeStruct(shape, jnp.float32))
    return vary(call(*(vary(operand, axes) for operand in operands), settings=pass_.settings), axes)


def _batch(pass_: _Pass, size: int, mapped: Sequence[bool], *operands: Any) -> tuple[Any, bool]:
    """Fold the mapped axis into the batch; where an array without a batch is mapped, convolve one after the other."""
    operation, with_batch = _operation(pass_), [_has_batch(role) for role in pass_.operands]
    if not _has_batch(pass_.result) or any(m and not b for m, b in zip(mapped, with_batch, strict=True)):
        return jax.vmap(sequential_vmap(operation), [0 if m else None for m in mapped])(*operands), True

    def fold(operand: Any, is_mapped: bool, has_batch: bool) -> Any:
        if not has_batch:
            return operand
        whole = operand if is_mapped else jnp.broadcast_to(operand, (size, *operand.shape))
        return whole.reshape(size * whole.shape[1], *whole.shape[2:])

    result = operation(*map(fold, operands, mapped, with_batch))
    return result.reshape(size, result.shape[0] // size, *result.shape[1:]), True


def _shardings(pass_: _Pass, mesh: Any, operands: Sequence[Any]) -> tuple[NamedSharding, ...]:
    """Return the result's sharding and each operand's: the batch as it is cut, all else whole on every device."""
    images = [operand for operand, role in zip(operands, pass_.operands, strict=True) if _has_batch(role)]
    images = [image for image in images if isinstance(image.sharding, NamedSharding)]
    mesh = images[0].sharding.mesh if images else mesh
    cut = next((image.sharding.spec[0] for image in images if is_cut_evenly(image)), None)
    by_batch, whole = NamedSharding(mesh, Partition(cut)), NamedSharding(mesh, Partition())
    return tuple(by_batch if _has_batch(role) else whole for role in (pass_.result, *pass_.operands))


def _partition(pass_: _Pass, mesh: Any, operands: Sequence[Any], _: Any) -> tuple[Any, ...]:
    result, *shardings = _shardings(pass_, mesh, operands)
    cut = shardings[0].spec[0]

    def run(*arrays: Any) -> Any:
        with within(result.mesh):
            part = _call(pass_, *arrays)
            return lax.psum(part, cut) if cut and not _has_batch(pass_.result) else part

    return result.mesh, run, result, tuple(shardings)
