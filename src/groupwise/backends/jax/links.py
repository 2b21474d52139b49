"""JAX: links of chains, convolutions that normalise what they read and count what they write, as custom calls of XLA.

Neither the normalised inputs nor the gradient to the outputs that comes through their statistics is ever in memory. The
tangent's transpose are two gradients of the core's: to inputs and reading, and to the kernel. Under data parallelism
every device computes the images that it holds, and only statistics and gradients' sums are reduced over devices. What
differentiates tangent and gradients is the plain expression.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from groupwise.backends import activations, plain_links
from groupwise.backends.jax import passes
from groupwise.backends.jax.handlers import require
from groupwise.backends.jax.mesh import in_any_mesh
from groupwise.backends.jax.operations import Arrays, Parts, Rules, define, tangents_of
from groupwise.backends.jax.partition import call, dimensions, of_the_whole_batch, partitioned
from groupwise.backends.plain_links import Reading
from groupwise.core import convolution, epilogues
from groupwise.spec import ConvSpec

_HANDLERS = ("gw_jax_link", "gw_jax_link_input_gradient", "gw_jax_link_kernel_gradient")
_INPUTS, _KERNEL, _OUTPUTS, _IN_CHANNELS, _OUT_CHANNELS = range(5)
# Each role's rank, and whether it begins with the batch.
_DIMENSIONS = ((4, True), (4, False), (4, True), (1, False), (1, False))


@dataclass(frozen=True)
class _Link:
    """A link over any batch.

    Attributes:
        sizes: those of `convolution.sizes` without the first, the batch.
        activation: that of the reading; None where inputs are read as they are.
        counts: whether statistics are among the results.
    """

    sizes: tuple[int, ...]
    activation: str | None
    counts: bool

    @property
    def operands(self) -> tuple[int, ...]:
        """The roles of inputs and kernel, and of the reading's mean, scale and shift."""
        return (_INPUTS, _KERNEL, *([] if self.activation is None else [_IN_CHANNELS] * 3))

    @property
    def results(self) -> tuple[int, ...]:
        """The roles of the outputs, their mean and their variance."""
        return (_OUTPUTS, *([_OUT_CHANNELS] * 2 if self.counts else []))

    @property
    def known(self) -> tuple[int, ...]:
        """The roles of what tangent and gradients are told first: operands and, where it counts, outputs and mean."""
        return (*self.operands, *self.results[:-1])

    def roles(self, pass_: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the roles of what a pass reads and of what it writes: one of `convolution.PASSES`."""
        if pass_ == convolution.FORWARD:
            return self.operands, self.results
        inputs, kernel, *reading = self.operands
        return (*self.known, *self.results), ((inputs, *reading) if pass_ == convolution.INPUT_GRADIENT else (kernel,))

    def split(self, operands: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return what is known of tangent's or gradients' operands, and the others."""
        return operands[: len(self.known)], operands[len(self.known) :]

    @property
    def settings(self) -> np.ndarray:
        """What csrc/bindings/jax_link.cc wants to know beside the shapes."""
        activation = -1 if self.activation is None else epilogues.number(self.activation)
        return np.array([*self.sizes[8:], activation, self.counts], np.int64)

    def arrays(self, roles: Sequence[int], batch: Any) -> list[jax.ShapeDtypeStruct]:
        """Return the shapes and types of arrays."""
        inputs, kernel, outputs = convolution.shapes((batch, *self.sizes))
        shapes = inputs, kernel, outputs, inputs[3:], outputs[3:]
        return [jax.ShapeDtypeStruct(shapes[role], jnp.float32) for role in roles]


def link(
    inputs: Any, kernel: Any, spec: ConvSpec, reading: Reading | None = None, counts: bool = False
) -> tuple[Any, Any, Any]:
    """Return the convolution of inputs as they are read, and its mean and biased variance, or None, by the core.

    It differentiates in every mode, any number of times, under `jax.vmap` computes one batch after the other, and
    leaves a batch that is cut over devices where it lies; the statistics are the whole batch's.

    Arguments and results are those of `backends.Core.link`.

    Raises:
        ValueError: where a type or shape does not fit, the activation is none of them, or arrays lie on an accelerator.
        RuntimeError: where the core is not available.

    Examples:
        >>> spec = ConvSpec.of((1, 1, 2, 1), (1, 1, 1, 1), 1)
        >>> reading = Reading(jnp.array([1.0]), jnp.array([2.0]), jnp.array([0.0]), "relu")
        >>> outputs, mean, _ = link(jnp.array([[[[0.0], [3.0]]]]), jnp.ones((1, 1, 1, 1)), spec, reading, counts=True)
        >>> outputs.ravel().tolist(), mean.item()
        ([0.0, 4.0], 2.0)
    """
    require(inputs)
    *channels, activation = reading or (None,)
    if activation is not None:
        epilogues.number(activation)
    operands = [jnp.asarray(operand) for operand in (inputs, kernel, *channels)]
    kind = _Link(convolution.sizes(spec, (1, *operands[0].shape[1:]))[1:], activation, counts)
    wanted = kind.arrays(kind.operands, operands[0].shape[0])
    for name, operand, one in zip(("inputs", "kernel", "mean", "scale", "shift"), operands, wanted, strict=False):
        if operand.shape != one.shape or operand.dtype != one.dtype:
            raise ValueError(
                f"{name} of shape {operand.shape}, type {operand.dtype}: must be of shape {one.shape}, type float32"
            )
    if counts:
        return in_any_mesh(partial(_forward, kind), operands, statistics=2)
    return in_any_mesh(lambda *operands: _forward(kind, *operands)[0], operands), None, None


# Transformations. Operands are what is known, by `_Link.known`, then tangents or cotangents.


def _plain(kind: _Link, inputs: Any, kernel: Any, *reading: Any) -> tuple[Any, ...]:
    """Return what a link does, one operation after the other."""
    if reading:
        inputs = _activated(kind.activation, plain_links.before_activation(inputs, Reading(*reading)))
    (outputs,) = passes.alone(passes.Pass(convolution.FORWARD, kind.sizes), inputs, kernel)
    return (outputs, *(plain_links.statistics(outputs) if kind.counts else ()))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _activated(activation: str, seen: Any) -> Any:
    return activations.FUNCTIONS[activation](seen)


@_activated.defjvp
def _activated_jvp(activation: str, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """Return an activation and what of its tangent passes, as the core has it where the slope jumps too."""
    (seen,), (tangent,) = primals, tangents
    return _activated(activation, seen), activations.passed(tangent, seen, activation)


def _plain_tangent(kind: _Link, *operands: Any) -> Any:
    known, moving = kind.split(operands)
    return tuple(tangents_of(partial(_plain, kind), known[: len(moving)], moving))


def _plain_gradients(pass_: int, kind: _Link, *operands: Any) -> tuple[Any, ...]:
    known, upstream = kind.split(operands)
    pull = jax.vjp(partial(_plain, kind), *known[: len(kind.operands)])[1]
    to_inputs, to_kernel, *to_reading = pull(tuple(upstream))
    return (to_inputs, *to_reading) if pass_ == convolution.INPUT_GRADIENT else (to_kernel,)


def _forward_jvp(kind: _Link, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    results = _forward(kind, *operands)
    return results, _tangent(kind, *operands, *results[:-1], *_with_zeros(tangents, operands))


def _tangent_jvp(kind: _Link, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    return _tangent(kind, *operands), tangents_of(partial(_plain_tangent, kind), operands, tangents)


def _tangent_transpose(kind: _Link, cotangents: Parts, operands: Parts) -> Parts:
    """Return the gradients that are wanted; where none comes through the statistics, they play no part."""
    known, moving = kind.split(operands)
    through = replace(kind, counts=any(cotangent is not None for cotangent in cotangents[1:]))
    upstream = _with_zeros(cotangents, (*known[-2:], known[-1])) if through.counts else cotangents[:1]
    arguments = (through, *known[: len(through.known)], *upstream)
    of_inputs, of_kernel, *of_reading = moving
    to_images: Parts = [None] * (1 + len(of_reading))
    if any(part is None for part in (of_inputs, *of_reading)):
        to_images = _input_gradient(*arguments)
    (to_kernel,) = _kernel_gradient(*arguments) if of_kernel is None else (None,)
    return _to_unknown(known, (to_images[0], to_kernel, *to_images[1:]), moving)


def _gradient_jvp(pass_: int, kind: _Link, operands: Arrays, tangents: Parts) -> tuple[Arrays, Parts]:
    results = _GRADIENTS[pass_](kind, *operands)
    return results, tangents_of(partial(_plain_gradients, pass_, kind), operands, tangents)


def _gradient_transpose(pass_: int, kind: _Link, cotangents: Parts, operands: Parts) -> Parts:
    """Return the tangent along the cotangents, which are of the operands' shapes."""
    known, upstream = kind.split(operands)
    read = known[: len(kind.operands)]
    if pass_ == convolution.INPUT_GRADIENT:
        along = [cotangents[0], None, *cotangents[1:]]
    else:
        along = [None, *cotangents, *[None] * (len(read) - 2)]
    return _to_unknown(known, _tangent(kind, *known, *_with_zeros(along, read)), upstream)


def _with_zeros(parts: Parts, like: Arrays) -> list[Any]:
    """Return tangents or cotangents, with zeros for None."""
    return [jnp.zeros_like(array) if part is None else part for part, array in zip(parts, like, strict=True)]


def _to_unknown(known: Arrays, found: Parts, operands: Parts) -> Parts:
    """Return cotangents for what is known, which has none, and for those of the other operands that are not."""
    return [*[None] * len(known), *(f if operand is None else None for f, operand in zip(found, operands, strict=True))]


# The passes: the custom calls, partitioned.


@lru_cache(maxsize=4096)
def _operation(pass_: int, kind: _Link) -> Callable[..., Any]:
    given, results = ([_DIMENSIONS[role] for role in roles] for roles in kind.roles(pass_))
    run = _run_forward if pass_ == convolution.FORWARD else _run_gradient
    operation = partitioned(partial(run, pass_, kind), dimensions(given, results))
    return operation if len(results) > 1 else lambda *operands: (operation(*operands),)


def _run_forward(pass_: int, kind: _Link, cut: Any, _: int, *operands: Any) -> Any:
    found = _call(pass_, kind, *operands)
    if not kind.counts:
        return found[0]
    outputs, mean, variance = found
    return outputs, *(of_the_whole_batch(mean, variance, cut) if cut else (mean, variance))


def _run_gradient(pass_: int, kind: _Link, cut: Any, parts: int, *operands: Any) -> Any:
    """Compute a gradient; `cut` names the mesh's axes over which the batch lies in so many `parts`, or None."""
    (inputs, kernel, *rest), upstream = kind.split(operands)
    reading, (gradient, how) = rest[: len(kind.operands) - 2], _read_upstream(kind, parts, rest, upstream)
    if pass_ == convolution.KERNEL_GRADIENT:
        (to_kernel,) = _call(pass_, kind, inputs, gradient, *reading, *how)
        return lax.psum(to_kernel, cut) if cut else to_kernel
    if not reading:
        return _call(pass_, kind, gradient, kernel, *how)[0]
    to_inputs, sums = _call(pass_, kind, gradient, kernel, *reading, inputs, *how)
    to_shift, to_scale = lax.psum(sums, cut) if cut else sums
    return to_inputs, -reading[1] * to_shift, to_scale, to_shift


def _read_upstream(kind: _Link, parts: int, known: Arrays, upstream: Arrays) -> tuple[Any, Arrays]:
    """Return the image that the passes take for the gradient to outputs, and how they read it.

    What comes through the statistics, (outputs - mean) * 2 * to_variance / pixels + to_mean / pixels, is added then.
    """
    if not kind.counts:
        return upstream[0], ()
    (outputs, mean), (gradient, to_mean, to_variance) = known[-2:], upstream
    pixels = parts * prod(outputs.shape[:3])
    return outputs, (mean, 2 * to_variance / pixels, to_mean / pixels, gradient)


def _call(pass_: int, kind: _Link, *operands: Any) -> Any:
    """Run a pass of csrc/bindings/jax_link.cc, whose first operand has the batch."""
    results = kind.arrays(kind.roles(pass_)[1], operands[0].shape[0])
    if pass_ == convolution.INPUT_GRADIENT and kind.activation is not None:
        results[1:] = [jax.ShapeDtypeStruct((2, kind.sizes[2]), jnp.float32)]
    return call(_HANDLERS[pass_], results, operands, kind.settings)


def _rules(pass_: int, jvp: Any, transpose: Any = None) -> Rules:
    return Rules(
        partial(_operation, pass_),
        lambda kind, inputs, *_: kind.arrays(kind.roles(pass_)[1], inputs.shape[0]),
        jvp,
        transpose,
    )


def _gradient(name: str, pass_: int) -> Callable[..., Any]:
    return define(name, _rules(pass_, partial(_gradient_jvp, pass_), partial(_gradient_transpose, pass_)))


_forward = define("link", _rules(convolution.FORWARD, _forward_jvp))
"""Inputs, kernel, the reading's mean, scale and shift -> outputs, mean and variance."""
_input_gradient = _gradient("link_input_gradient", convolution.INPUT_GRADIENT)
"""What is known, the gradients to outputs, mean and variance -> those to inputs and to the reading."""
_kernel_gradient = _gradient("link_kernel_gradient", convolution.KERNEL_GRADIENT)
"""The same -> the gradient to the kernel."""
_GRADIENTS = {convolution.INPUT_GRADIENT: _input_gradient, convolution.KERNEL_GRADIENT: _kernel_gradient}
_tangent = define(
    "link_tangent",
    Rules(
        lambda kind: partial(_plain_tangent, kind),
        lambda kind, inputs, *_: kind.arrays(kind.results, inputs.shape[0]),
        _tangent_jvp,
        _tangent_transpose,
    ),
)
"""The gradients' transpose: what is known, the tangents of all that a link reads -> those of what it returns."""
