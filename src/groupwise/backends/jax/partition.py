"""JAX: custom calls of XLA that stay where their images are: a batch cut over devices is computed where it lies."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Partition

from groupwise.backends.jax.mesh import custom_partitioning, is_cut_evenly, vary, varying_axes, within


def call(target: str, results: Any, operands: Sequence[Any], settings: Any) -> Any:
    """Return what a custom call of the core's makes of arrays that lie on one device.

    Args:
        target: its name. results: their shapes and types, or one. operands: the arrays.
        settings: int64, what it wants to know beside the shapes.
    """
    axes = frozenset[str]().union(*map(varying_axes, operands))
    found = jax.ffi.ffi_call(target, results)(*(vary(operand, axes) for operand in operands), settings=settings)
    return jax.tree.map(lambda result: vary(result, axes), found)


def dimensions(operands: Sequence[tuple[int, bool]], results: Sequence[tuple[int, bool]]) -> str:
    """Return a rule for `partitioned`, of the rank of each array and whether it begins with the batch.

    Only the batch has one name everywhere, and stays cut over devices.

    Examples:
        >>> dimensions([(2, True), (1, False)], [(2, True)])
        'n a0_1, a1_0 -> n b0_1'
    """

    def text(prefix: str, arrays: Sequence[tuple[int, bool]]) -> str:
        names = [[f"{prefix}{index}_{axis}" for axis in range(rank)] for index, (rank, _) in enumerate(arrays)]
        return ", ".join(
            " ".join(["n", *axes[1:]] if has_batch else axes)
            for axes, (_, has_batch) in zip(names, arrays, strict=True)
        )

    return f"{text('a', operands)} -> {text('b', results)}"


def of_the_whole_batch(mean: Any, variance: Any, cut: Any) -> tuple[Any, Any]:
    """Return a batch's mean and variance of those of its parts, which are of one size: Chan's formula."""
    whole = lax.pmean(mean, cut)
    return whole, lax.pmean(variance + (mean - whole) ** 2, cut)


def partitioned(run: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """Return `run` as a compiled operation that every device does for the images that it holds.

    Args:
        run: (cut, parts, *operands) -> the result, or several. `cut` names the mesh's axes over which the batch lies in
            so many `parts`; None and 1 where it is whole.
        rule: the arrays' dimensions, as Shardy names them: "n h w c, i j k l -> n p q o". An array that begins with "n"
            has the batch, which alone stays cut over devices; all else is whole on each of them.
    """
    has_batch = [[array.split()[0] == "n" for array in side.split(",")] for side in rule.split("->")]

    def shardings(mesh: Any, operands: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
        """Return the mesh, how the batch is cut, and the operands' and the results' shardings."""
        images = [operand for operand, is_image in zip(operands, has_batch[0], strict=True) if is_image]
        images = [image for image in images if isinstance(image.sharding, NamedSharding)]
        mesh = images[0].sharding.mesh if images else mesh
        cut = next((image.sharding.spec[0] for image in images if is_cut_evenly(image)), None)
        by_batch, whole = NamedSharding(mesh, Partition(cut)), NamedSharding(mesh, Partition())
        given, results = (tuple(by_batch if is_image else whole for is_image in side) for side in has_batch)
        return mesh, cut, given, results if len(results) > 1 else results[0]

    def partition(mesh: Any, operands: Sequence[Any], _: Any) -> tuple[Any, ...]:
        mesh, cut, given, results = shardings(mesh, operands)
        axes = () if cut is None else (cut,) if isinstance(cut, str) else cut
        parts = prod(mesh.shape[axis] for axis in axes)

        def part(*arrays: Any) -> Any:
            with within(mesh):
                return run(cut, parts, *arrays)

        return mesh, part, results, given

    operation = custom_partitioning()(partial(run, None, 1))
    operation.def_partition(
        partition=partition,
        infer_sharding_from_operands=lambda mesh, operands, _: shardings(mesh, operands)[3],
        sharding_rule=rule,
    )
    # Compiled, so that a call outside any jax.jit finds its executable at once.
    return jax.jit(operation, inline=True)
