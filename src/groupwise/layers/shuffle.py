"""ShuffleNet's channel shuffle, as a Keras layer."""

from typing import Any

import keras

from groupwise.ops import channel_shuffle
from groupwise.ops.arguments import checked_data_format

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable("groupwise")
class ChannelShuffle(keras.layers.Layer):
    """ShuffleNet's channel shuffle as a layer: `groupwise.ops.channel_shuffle`.

    Args:
        groups: a divisor of the channels.
        inverse: whether to undo the shuffle.
        data_format: "channels_last", "channels_first" or None for Keras's setting.

    Examples:
        >>> ChannelShuffle(3).compute_output_shape((1, 28, 28, 240))
        (1, 28, 28, 240)
    """

    def __init__(self, groups: int, inverse: bool = False, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.groups, self.inverse = groups, inverse
        self.data_format = checked_data_format(data_format)

    def call(self, inputs: Any) -> Any:
        return channel_shuffle(inputs, self.groups, self.inverse, self.data_format)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        own = {"groups": self.groups, "inverse": self.inverse, "data_format": self.data_format}
        return {**super().get_config(), **own}
