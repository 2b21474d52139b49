"""JAX: how arrays lie on several devices; the names that moved between its versions 0.6 and 0.10 are all here."""

import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import prod
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Partition


def custom_partitioning() -> Any:
    """Return JAX's `custom_partitioning`."""
    return importlib.import_module("jax.experimental.custom_partitioning").custom_partitioning


def needs_devices(primitive: Any) -> None:
    """Let XLA know the devices where `primitive`, in which `custom_partitioning` is hidden, is lowered.

    JAX's fused attention does this; there is no public name for it.
    """
    importlib.import_module("jax._src.dispatch").prim_requires_devices_during_lowering.add(primitive)


def within(mesh: Any) -> Any:
    """Return a context whose mesh is `mesh`: 0.8 and 0.9 spoil a sum over devices where the caller's is explicit."""
    use = getattr(jax.sharding, "use_abstract_mesh", None)
    return use(mesh.abstract_mesh) if use else nullcontext()


def varying_axes(operand: Any) -> frozenset[str]:
    """Return the axes of an enclosing `shard_map` along which `operand` differs."""
    kind = jax.typeof(operand)
    manual = getattr(kind, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(kind, "vma", frozenset())


def type_beside(operand: Any, result: Any) -> Any:
    """Return the full type of an array of the shape and type of `result`, of operands that no explicit axis cuts.

    What else the type of one of them holds, they share: the mesh, and along which of its axes they vary.
    """
    whole = NamedSharding(operand.sharding.mesh, Partition(*[None] * len(result.shape)))
    return operand.update(shape=result.shape, dtype=result.dtype, weak_type=False, sharding=whole)


def vary(operand: Any, axes: frozenset[str]) -> Any:
    """Mark `operand` as differing along `axes`; its gradient is then summed over those that are new."""
    missing = tuple(sorted(axes - varying_axes(operand)))
    if not missing:
        return operand
    return lax.pcast(operand, missing, to="varying") if hasattr(lax, "pcast") else lax.pvary(operand, missing)


def in_any_mesh(function: Callable[..., Any], operands: Sequence[Any], statistics: int = 0) -> Any:
    """Call `function` where all operands vary alike and no axis of the mesh is explicit: XLA then cuts them.

    It returns an image, or a tuple of one and as many `statistics` of rank 1, which are whole on every device.
    """
    axes = frozenset[str]().union(*map(varying_axes, operands))
    operands = [vary(operand, axes) for operand in operands]
    shardings = [jax.typeof(operand).sharding for operand in operands]
    auto_axes = getattr(jax.sharding, "auto_axes", None)  # from 0.7 on
    if auto_axes is None or not any(sharding.mesh.explicit_axes for sharding in shardings):
        return function(*operands)
    cut = shardings[0].spec[0] if len(shardings[0].spec) else None
    image = Partition(cut, None, None, None)
    results = (image, *[Partition(None)] * statistics) if statistics else image
    return auto_axes(function, out_sharding=results)(*operands)


def is_cut_evenly(image: Any) -> bool:
    """Return whether the batch is cut into equal parts; XLA pads unequal ones, with numbers of no meaning."""
    spec = image.sharding.spec
    if not len(spec) or spec[0] is None:
        return False
    axes = (spec[0],) if isinstance(spec[0], str) else spec[0]
    return image.shape[0] % prod(image.sharding.mesh.shape[axis] for axis in axes) == 0
