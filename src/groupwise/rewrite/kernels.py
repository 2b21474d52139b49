"""Kernels in another structure: grouped as dense, separable as dense, and the nearest of the narrower structures."""

from typing import Any

import numpy as np

from groupwise.rewrite.assignment import assign

Kernel = np.ndarray
"""(kernel height, kernel width, in_channels // groups, out_channels)."""

ROUNDS = 50  # of assigning inputs, then outputs; it ends before where nothing improves
STARTS = 8


def dense_of_grouped(kernel: Kernel, groups: int) -> Kernel:
    """Return the dense kernel with the same sums: zero between channels of different groups.

    Examples:
        >>> dense_of_grouped(np.ones((1, 1, 1, 2)), 2)[0, 0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    *size, group_width, out_channels = kernel.shape
    dense = np.zeros((*size, group_width * groups, out_channels), kernel.dtype)
    for group, part in enumerate(np.split(kernel, groups, axis=3)):
        outputs = part.shape[3]
        dense[:, :, group * group_width : (group + 1) * group_width, group * outputs : (group + 1) * outputs] = part
    return dense


def grouped_of_dense(kernel: Kernel, groups: int) -> Kernel:
    """Return the blocks on the diagonal of a dense kernel: of all grouped kernels, the nearest to it."""
    inputs = np.split(kernel, groups, axis=2)
    return np.concatenate([np.split(rows, groups, axis=3)[group] for group, rows in enumerate(inputs)], axis=3)


def outside(kernel: Kernel, groups: int) -> float:
    """Return which share of a dense kernel's norm lies outside the blocks on its diagonal, from 0 to 1."""
    total = float(np.square(kernel, dtype=np.float64).sum())
    rest = kernel - dense_of_grouped(grouped_of_dense(kernel, groups), groups)
    return 0.0 if total == 0 else float(np.sqrt(np.square(rest, dtype=np.float64).sum() / total))


def dense_of_separable(depthwise: Kernel, pointwise: Kernel) -> Kernel:
    """Return the dense kernel with the same sums as a separable convolution.

    Args:
        depthwise: (kernel height, kernel width, in_channels, M). pointwise: (1, 1, in_channels * M, out_channels).
    """
    channels, multiplier = depthwise.shape[2:]
    mixing = pointwise.reshape(channels, multiplier, -1).astype(np.float64)
    return np.einsum("hwqr,qrk->hwqk", depthwise.astype(np.float64), mixing).astype(depthwise.dtype)


def separable_of_dense(kernel: Kernel, rank: int) -> tuple[Kernel, Kernel, float]:
    """Return the separable kernels of multiplier `rank` that are nearest to a dense one, and how far they are off.

    Each input channel's filters are a matrix of kernel height * width rows and out_channels columns, of which a
    separable convolution holds a product of rank M: the first M singular values give the nearest (Eckart and Young).
    Both factors get the root of each singular value, so that neither is small.

    Returns:
        depthwise (kernel height, kernel width, in_channels, rank), pointwise (1, 1, in_channels * rank, out_channels),
        and the norm of the difference over the norm of `kernel`: 0 at rank = kernel height * width.

    Examples:
        >>> depthwise, pointwise, error = separable_of_dense(np.ones((3, 3, 2, 5)), 1)
        >>> depthwise.shape, pointwise.shape, round(error, 6)
        ((3, 3, 2, 1), (1, 1, 2, 5), 0.0)
    """
    height, width, channels, out_channels = kernel.shape
    matrices = kernel.astype(np.float64).transpose(2, 0, 1, 3).reshape(channels, height * width, out_channels)
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    kept = min(rank, values.shape[1])
    roots = np.sqrt(values[:, :kept])
    depthwise = np.zeros((channels, height * width, rank))
    pointwise = np.zeros((channels, rank, out_channels))
    depthwise[..., :kept], pointwise[:, :kept] = left[..., :kept] * roots[:, None], roots[..., None] * right[:, :kept]
    total = float(np.square(values).sum())
    error = 0.0 if total == 0 else float(np.sqrt(np.square(values[:, kept:]).sum() / total))
    return (
        depthwise.reshape(channels, height, width, rank).transpose(1, 2, 0, 3).astype(kernel.dtype),
        pointwise.reshape(1, 1, channels * rank, out_channels).astype(kernel.dtype),
        error,
    )


def group_channels(kernel: Kernel, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return orders of a dense kernel's input and output channels that bring much of its norm into the blocks.

    The heuristic: given which outputs are in which group, the best groups of inputs are an assignment problem, which is
    solved exactly; given those, the outputs likewise; in turns, until nothing improves. It starts from the given order
    and from some random ones, and the best end counts: it is never worse than the given order.

    Returns:
        Two permutations: position i of the new order holds channel order[i] of the old.
    """
    weights = np.square(kernel, dtype=np.float64).sum(axis=(0, 1))
    ins, outs = weights.shape
    random = np.random.default_rng(seed)
    best: tuple[float, Any, Any] = (_inside(weights, np.arange(ins), np.arange(outs), groups), None, None)
    for start in range(STARTS):
        in_order = np.arange(ins)
        out_order = np.arange(outs) if start == 0 else random.permutation(outs)
        reached = -1.0
        for _ in range(ROUNDS):
            in_order = _assigned(weights[:, out_order], groups)
            out_order = _assigned(weights[in_order].T, groups)
            inside = _inside(weights, in_order, out_order, groups)
            if inside <= reached * (1 + 1e-12):
                break
            reached = inside
        if reached > best[0] * (1 + 1e-9):
            best = (reached, in_order, out_order)
    _, in_order, out_order = best
    return (np.arange(ins), np.arange(outs)) if in_order is None else (in_order, out_order)


def _inside(weights: np.ndarray, in_order: np.ndarray, out_order: np.ndarray, groups: int) -> float:
    blocks = weights[np.ix_(in_order, out_order)].reshape(groups, len(in_order) // groups, groups, -1)
    return float(np.einsum("gigo->", blocks))


def _assigned(weights: np.ndarray, groups: int) -> np.ndarray:
    """Return the order of the rows that brings most into the blocks, the columns being in theirs."""
    rows, columns = weights.shape
    gains = weights.reshape(rows, groups, columns // groups).sum(axis=2)
    # Within a group the old order stays.
    return np.argsort(assign(gains), kind="stable")
