"""How a depthwise kernel starts."""

from collections.abc import Sequence
from typing import Any

import keras


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
        return keras.random.normal(shape, stddev=deviation, dtype=dtype or keras.config.floatx(), seed=self.seed)
