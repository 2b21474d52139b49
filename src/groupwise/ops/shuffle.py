"""Channel shuffle: on arrays, traced or symbolic tensors."""

from typing import Any

import keras
from keras import ops

from groupwise.ops.arguments import checked_data_format
from groupwise.spec import integer


def channel_shuffle(inputs: Any, groups: int, inverse: bool = False, data_format: str | None = None) -> Any:
    """Deal the channels of every group out to all groups, so that the next grouped convolution sees all of them.

    The channels, as (groups, n), are transposed to (n, groups): `out[i * groups + g] = in[g * n + i]`.

    Args:
        inputs: (batch, height, width, groups * n), or channels first; any number of leading or spatial axes.
        groups: a divisor of the channels.
        inverse: whether to undo the shuffle instead: (n, groups) to (groups, n).
        data_format: "channels_last" or "channels_first"; None is Keras's setting.

    Returns:
        The same shape and type.

    Raises:
        ValueError: if groups is no integer that divides the channels.

    Source: ShuffleNet, arXiv 1707.01083, section 3.1 and figure 1.

    Examples:
        >>> import numpy as np
        >>> np.asarray(channel_shuffle(np.arange(6.0).reshape(1, 1, 1, 6), groups=2)).ravel().tolist()
        [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    if isinstance(inputs, keras.KerasTensor):
        return _Shuffle(groups, inverse, data_format)(inputs)
    inputs = ops.convert_to_tensor(inputs)
    axis, channels = _channels(inputs.shape, groups, checked_data_format(data_format))
    n = channels // groups
    split = (n, groups) if inverse else (groups, n)
    shape = ops.shape(inputs)
    grouped = ops.reshape(inputs, (*shape[:axis], *split, *shape[axis + 1 :]))
    return ops.reshape(ops.swapaxes(grouped, axis, axis + 1), shape)


class _Shuffle(keras.Operation):
    """`channel_shuffle` in a graph of symbolic tensors."""

    def __init__(self, groups: int, inverse: bool, data_format: str | None) -> None:
        super().__init__()
        self.groups, self.inverse, self.data_format = groups, inverse, checked_data_format(data_format)

    def call(self, inputs: Any) -> Any:
        return channel_shuffle(inputs, self.groups, self.inverse, self.data_format)

    def compute_output_spec(self, inputs: Any) -> keras.KerasTensor:
        _channels(inputs.shape, self.groups, self.data_format)
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)


def _channels(shape: Any, groups: int, data_format: str) -> tuple[int, int]:
    """Return the channels' axis and their number, or raise ValueError where the groups do not divide it."""
    axis = 1 if data_format == "channels_first" else len(shape) - 1
    channels = shape[axis]
    if integer("groups", groups) < 1 or channels is None or channels % groups:
        raise ValueError(
            f"groups={groups}: must divide the {channels} channels of input shape {tuple(shape)}; "
            f"choose a divisor of {channels}"
        )
    return axis, channels
