"""The activations that the core computes, in float64: what they are, their slopes, and where these jump."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    """One activation: its value and its slope at each number, and the numbers where the slope jumps."""

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    edges: tuple[float, ...] = ()


TRUTH = {
    "linear": Truth(lambda x: x, np.ones_like),
    "relu": Truth(lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0), (0,)),
    "relu6": Truth(lambda x: np.clip(x, 0, 6), lambda x: 1.0 * ((x > 0) & (x < 6)), (0, 6)),
    "silu": Truth(lambda x: x / (1 + np.exp(-x)), lambda x: 1 / (1 + np.exp(-x)) + x / (np.exp(x) + 2 + np.exp(-x))),
    "hard_swish": Truth(
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)),
        (-3, 3),
    ),
}
