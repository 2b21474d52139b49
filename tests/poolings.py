"""What the tests of max pooling share: drawn images, and their truth."""

import ml_dtypes
import numpy as np

from groupwise.core import convolution, pooling
from groupwise.spec import ConvSpec
from tests.reference import Pooling, max_pool

TYPES = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16), "uint8": np.dtype("uint8")}
ROUNDING = {"float32": 2**-22, "bfloat16": 2**-8}
"""Relative errors: sums of gradients are added in float32 and rounded once."""
SPECS = (
    pooling.window((2, 8, 9, 20), (2, 2), (2, 2)),
    pooling.window((2, 9, 8, 35), (3, 3), (2, 2), ((1, 1), (1, 1))),
    pooling.window((1, 11, 13, 6), (4, 2), (1, 3), "same"),
)


def images(spec: ConvSpec, seed: int = 0, with_nan: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs of few values, so that maxima are often equal, and a gradient to their outputs."""
    random = np.random.default_rng(seed)
    before, after = pooling.shapes(spec)
    values = [-2, -1, -0.0, 0, 1, 2, 3, *([-np.inf, np.nan] if with_nan else [])]
    return random.choice(values, before).astype(TYPES[spec.dtype]), random.normal(size=after).astype(TYPES[spec.dtype])


def truth(spec: ConvSpec, inputs: np.ndarray, gradient: np.ndarray) -> Pooling:
    """Return the pooling that `spec` describes, by plain NumPy."""
    padding = spec.explicit_padding
    assert padding is not None
    return max_pool(inputs.astype("float64"), gradient, convolution.sizes(spec)[7:9], spec.strides, padding)  # type: ignore[arg-type]
