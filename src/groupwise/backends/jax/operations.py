"""JAX: operations that are primitives of their own, so that every transformation goes through them.

A function with `jax.custom_vjp` has no forward mode, one with `jax.custom_jvp` no efficient reverse mode, unless the
linear operations in it know their transposes: as these do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from groupwise.backends.jax.mesh import needs_devices, type_beside

Arrays = Sequence[Any]
Parts = Sequence[Any]
"""One for each operand or result; None is zero."""


@dataclass(frozen=True)
class Rules:
    """How an operation is computed and transformed; its `kind` is hashable and says all but the operands.

    Attributes:
        run: kind -> the function of the operands, a tuple of results, as XLA compiles it.
        results: (kind, *operands without values) -> the results' shapes and types.
        jvp: (kind, operands, their tangents) -> the results, their tangents.
        transpose: (kind, cotangents of the results, operands, None where the operation is linear in them) -> cotangents
            of the operands; None where it is linear in none of them.
        images: kind -> the positions of the operands that begin with a batch, if all results do too: several batches
            are then computed as one.
    """

    run: Callable[[Any], Callable[..., Arrays]]
    results: Callable[..., Sequence[jax.ShapeDtypeStruct]]
    jvp: Callable[[Any, Arrays, Parts], tuple[Arrays, Parts]]
    transpose: Callable[[Any, Parts, Parts], Parts] | None = None
    images: Callable[[Any], Sequence[int]] = lambda _: ()


def define(name: str, rules: Rules) -> Callable[..., tuple[Any, ...]]:
    """Return the operation as a function (kind, *operands) -> results."""
    primitive = Primitive(f"groupwise_{name}")
    primitive.multiple_results = True

    def operation(kind: Any, *operands: Any) -> tuple[Any, ...]:
        return tuple(primitive.bind(*operands, kind=kind))

    def run(*operands: Any, kind: Any) -> list[Any]:
        return list(rules.run(kind)(*operands))

    def abstract(*operands: Any, kind: Any) -> list[Any]:
        return [type_beside(operands[0], result) for result in rules.results(kind, *operands)]

    def jvp(operands: Any, tangents: Any, kind: Any) -> tuple[Arrays, Arrays]:
        results, found = rules.jvp(kind, operands, [None if type(t) is ad.Zero else t for t in tangents])
        pairs = zip(results, found, strict=True)
        return results, [ad.Zero(jax.typeof(r).to_tangent_aval()) if t is None else t for r, t in pairs]

    def transpose(cotangents: Any, *operands: Any, kind: Any) -> Parts:
        given = [None if type(c) is ad.Zero else c for c in cotangents]
        known = [None if ad.is_undefined_primal(operand) else operand for operand in operands]
        if all(c is None for c in given):
            return [None] * len(operands)
        assert rules.transpose is not None
        return rules.transpose(kind, given, known)

    needs_devices(primitive)
    primitive.def_impl(run)
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    ad.primitive_jvps[primitive] = jvp
    if rules.transpose is not None:
        ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = _batching(operation, rules)
    return operation


def _batching(operation: Callable[..., Arrays], rules: Rules) -> Callable[..., tuple[list[Any], list[int]]]:
    """Return the rule for `jax.vmap`: one call with the mapped axis folded into the batch, or one for each in turn."""

    def batched(operands: Arrays, dims: Sequence[int | None], *, kind: Any) -> tuple[list[Any], list[int]]:
        mapped, images = {i for i, dim in enumerate(dims) if dim is not None}, set(rules.images(kind))
        given = [o if dim is None else jnp.moveaxis(o, dim, 0) for o, dim in zip(operands, dims, strict=True)]
        size = given[min(mapped)].shape[0]

        def fold(array: Any, is_mapped: bool) -> Any:
            whole = array if is_mapped else jnp.broadcast_to(array, (size, *array.shape))
            return whole.reshape(size * whole.shape[1], *whole.shape[2:])

        def one(arrays: dict[int, Any]) -> Arrays:
            return operation(kind, *(arrays.get(i, array) for i, array in enumerate(given)))

        if mapped <= images:
            batch = given[0].shape[1 if 0 in mapped else 0]
            results = operation(kind, *(fold(o, i in mapped) if i in images else o for i, o in enumerate(given)))
            results = [result.reshape(size, batch, *result.shape[1:]) for result in results]
        else:
            results = lax.map(one, {i: given[i] for i in mapped})
        return results, [0] * len(results)

    return batched


def jvp_of(function: Callable[..., Arrays], operands: Arrays, tangents: Parts) -> tuple[Arrays, Arrays]:
    """Return the results of `function`, which consists of other operations, and their tangents; for a rule."""
    moving = [index for index, tangent in enumerate(tangents) if tangent is not None]

    def of_moving(*arrays: Any) -> Arrays:
        replaced = dict(zip(moving, arrays, strict=True))
        return function(*(replaced.get(index, operand) for index, operand in enumerate(operands)))

    return jax.jvp(of_moving, [operands[index] for index in moving], [tangents[index] for index in moving])


def tangents_of(function: Callable[..., Arrays], operands: Arrays, tangents: Parts) -> Arrays:
    """Return the tangents of `jvp_of` alone."""
    return jvp_of(function, operands, tangents)[1]


def sum_of(parts: Arrays) -> Any:
    """Return the sum of one array or more."""
    return reduce(jnp.add, parts)
