"""JAX: the C core as custom calls of XLA, on XLA's own threads, that differentiate, batch and partition.

A convolution and its two gradients are the three partial derivatives of one sum over inputs, kernel and outputs, linear
in each: the transpose of one pass is another.
"""

import ctypes
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from groupwise.backends import activations
from groupwise.backends.jax.devices import check_on_cpu
from groupwise.backends.jax.mesh import custom_partitioning, in_any_mesh
from groupwise.backends.jax.operations import Arrays, Parts, Rules, define, sum_of
from groupwise.backends.jax.partition import call, partitioned
from groupwise.core import convolution, epilogues, library
from groupwise.spec import ConvSpec

_HANDLERS = ("gw_jax_forward", "gw_jax_input_gradient", "gw_jax_kernel_gradient")
_POOLING_HANDLERS = ("gw_jax_max_pool", "gw_jax_max_pool_gradient")
_NORM_HANDLERS = ("gw_jax_moments", "gw_jax_normalize", "gw_jax_gradient_sums", "gw_jax_gradient")
# What may follow inputs, kernel and outputs in convolution.ROLES: a forward pass's further operands.
_BIAS, _RESIDUAL = 3, 4
# Each role's dimensions, as Shardy names them. Only the batch has one name everywhere: it alone stays cut over devices.
_DIMENSIONS = ("n h w c", "i j k l", "n p q o", "b", "n r s t")


@dataclass(frozen=True)
class _Pass:
    """One pass of a convolution over any batch, and what follows a forward one.

    Attributes:
        number: one of `convolution.PASSES`.
        sizes: those of `convolution.sizes` without the first, the batch.
        extras: a forward pass's operands after inputs and kernel: _BIAS, _RESIDUAL, both or none.
        activation: one of `epilogues.ACTIVATIONS`.
    """

    number: int
    sizes: tuple[int, ...]
    extras: tuple[int, ...] = ()
    activation: str = "linear"

    @property
    def operands(self) -> tuple[int, ...]:
        """The roles of its operands; the first one always has a batch."""
        return (*convolution.ROLES[self.number][:2], *self.extras)

    @property
    def result(self) -> int:
        """The role of its result."""
        return convolution.ROLES[self.number][2]

    @property
    def settings(self) -> np.ndarray:
        """What csrc/bindings/jax.cc wants to know beside the shapes."""
        return np.array([*self.sizes[8:], epilogues.number(self.activation)], np.int64)

    def shapes(self, batch: Any) -> tuple[tuple[Any, ...], ...]:
        """Return every role's shape."""
        inputs, kernel, outputs = convolution.shapes((batch, *self.sizes))
        return inputs, kernel, outputs, outputs[3:], outputs


def _has_batch(role: int) -> bool:
    return _DIMENSIONS[role].startswith("n")


def is_available() -> bool:
    """Return whether the core is wanted, there, and JAX takes it; where JAX does not, one warning says why."""
    return library.is_available() and _register()


def require(inputs: Any) -> None:
    """Raise RuntimeError where the core is not available; without this, XLA knows none of its custom calls.

    Raises:
        ValueError: the inputs lie on an accelerator.
    """
    check_on_cpu(inputs)
    if not is_available():
        raise RuntimeError(f"the core is not available here: GROUPWISE_CORE is 0, or JAX cannot load {library.path()}")


@cache
def _register() -> bool:
    try:
        # Before the CPU has started, a handler that XLA refuses would keep it from starting; afterwards this raises.
        jax.devices("cpu")
        binding = ctypes.CDLL(str(library.path("groupwise_jax")))
        for name in (*_HANDLERS, *_POOLING_HANDLERS, *_NORM_HANDLERS):
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(binding, name)), platform="cpu")
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

    It differentiates in every mode, any number of times, batches under `jax.vmap`, and stays where it is under data
    parallelism: a batch cut over devices is convolved where it lies, and only the kernel's gradient is summed.

    Arguments and result are those of `backends.Core.convolve`; they may be of any floating-point type.

    Raises:
        ValueError: where a shape is not the spec's, the activation is none of them, or arrays lie on an accelerator.
        RuntimeError: where the core is not available.

    Examples:
        >>> spec = ConvSpec.of((1, 1, 1, 2), (1, 1, 1, 2), groups=2)
        >>> convolve(jnp.array([[[[2.0, 3.0]]]]), jnp.full((1, 1, 1, 2), 10.0), spec).ravel().tolist()
        [20.0, 30.0]
    """
    require(inputs)
    epilogues.number(activation)
    extras = {role: value for role, value in ((_BIAS, bias), (_RESIDUAL, residual)) if value is not None}
    operands = [jnp.asarray(operand, "float32") for operand in (inputs, kernel, *extras.values())]
    batch, *image = operands[0].shape
    forward = _Pass(convolution.FORWARD, convolution.sizes(spec, (1, *image))[1:], tuple(extras), activation)
    shapes = forward.shapes(batch)
    for role, operand in zip(forward.operands, operands, strict=True):
        if operand.shape != shapes[role]:
            name = ("inputs", "kernel", "outputs", "bias", "residual")[role]
            raise ValueError(f"{name} of shape {operand.shape}: must be of shape {shapes[role]}")
    run = _fused if extras or activation != "linear" else _pass
    return in_any_mesh(lambda *operands: run(forward, *operands)[0], operands).astype(spec.dtype)


# Transformations.


def _run(pass_: _Pass) -> Callable[..., Any]:
    return lambda *operands: (_operation(pass_)(*operands),)


def _results(pass_: _Pass, *operands: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(pass_.shapes(operands[0].shape[0])[pass_.result], jnp.float32)]


def _images(pass_: _Pass) -> list[int]:
    return [i for i, role in enumerate(pass_.operands) if _has_batch(role)] if _has_batch(pass_.result) else []


def _parts(pass_: _Pass, operands: Arrays, tangents: Parts) -> list[Any]:
    """Return the parts of the tangent of a pass, which is linear in each of its two operands."""
    (a, b, *_), (of_a, of_b, *_) = operands, tangents
    return [_pass(pass_, x, y)[0] for x, y in ((of_a, b), (a, of_b)) if x is not None and y is not None]


def _linear_jvp(pass_: _Pass, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    return _pass(pass_, *operands), [sum_of(_parts(pass_, operands, tangents))]


def _linear_transpose(pass_: _Pass, cotangents: Parts, operands: Parts) -> Parts:
    """Return the gradient to the one operand that is not known: the pass that gives it, of the two others."""
    arrays = dict(zip((*pass_.operands, pass_.result), (*operands, *cotangents), strict=True))
    by_result = {_Pass(number, pass_.sizes).result: _Pass(number, pass_.sizes) for number in convolution.PASSES}
    others = [by_result[role] if arrays[role] is None else None for role in pass_.operands]
    return [None if p is None else _pass(p, *(arrays[role] for role in p.operands))[0] for p in others]


def _fused_jvp(forward: _Pass, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    activation = forward.activation
    if epilogues.ACTIVATIONS[activation].reads_outputs:
        (outputs,) = _fused(forward, *operands)
        seen = outputs
    else:
        # Where a derivative is wanted, and nowhere else, what the activation sees is kept, and it runs by itself.
        (seen,) = _fused(replace(forward, activation="linear"), *operands)
        outputs = activations.FUNCTIONS[activation](seen)
    extras = [jnp.broadcast_to(extra, outputs.shape) for extra in tangents[2:] if extra is not None]
    tangent = sum_of([*_parts(_Pass(convolution.FORWARD, forward.sizes), operands, tangents), *extras])
    return [outputs], [activations.passed(tangent, seen, activation)]


_pass = define("pass", Rules(_run, _results, _linear_jvp, _linear_transpose, _images))
"""One pass alone."""
_fused = define("fused", Rules(_run, _results, _fused_jvp, images=_images))
"""A forward pass and what follows it."""


# One pass as XLA sees it: the custom call, partitioned.


@lru_cache(maxsize=4096)
def _operation(pass_: _Pass) -> Callable[..., Any]:
    rule = f"{', '.join(_DIMENSIONS[role] for role in pass_.operands)} -> {_DIMENSIONS[pass_.result]}"
    return partitioned(partial(_call, pass_), rule)


def _call(pass_: _Pass, cut: Any, _: int, *operands: Any) -> Any:
    """Run a pass on the images of one device; a result without a batch is summed over those that have a part of it."""
    result = jax.ShapeDtypeStruct(pass_.shapes(operands[0].shape[0])[pass_.result], jnp.float32)
    part = call(_HANDLERS[pass_.number], result, operands, pass_.settings)
    return lax.psum(part, cut) if cut and not _has_batch(pass_.result) else part
