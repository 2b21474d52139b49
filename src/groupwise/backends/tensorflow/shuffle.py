"""TensorFlow: the channel shuffle by the C core. TensorFlow's own transposition takes two to four times as long."""

from typing import Any

import tensorflow as tf

from groupwise.backends.tensorflow.operations import run


def shuffle(inputs: Any, groups: int, inverse: bool = False) -> Any:
    """Return float32 inputs of (..., channels) with each pixel's channels, as (groups, n), transposed to (n, groups).

    It differentiates any number of times. XLA cannot compile it.

    Args:
        inverse: whether (n, groups) become (groups, n) instead.

    Raises:
        ValueError: where TensorFlow computes on an accelerator. tf.errors.InvalidArgumentError: where the groups do not
            divide the channels.
    """
    inputs = tf.convert_to_tensor(inputs)
    return run("GroupwiseShuffle", [inputs], inputs.shape, groups=groups, inverse=int(inverse))


@tf.RegisterGradient("GroupwiseShuffle")
def _gradient(operation: Any, upstream: Any) -> Any:
    return shuffle(upstream, operation.get_attr("groups"), not operation.get_attr("inverse"))
