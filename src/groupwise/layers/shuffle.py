"""ShuffleNet's channel shuffle, as a Keras layer."""

from typing import Any

import keras

from groupwise import backends
from groupwise.backends.conversions import type_of
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
        if not backends.xla_compiles():
            # Keras then runs the model without XLA, and says so.
            self.supports_jit = False

    def call(self, inputs: Any) -> Any:
        shuffle = backends.active.shuffle
        if shuffle is not None and self._fits(inputs):
            n = inputs.shape[-1] // self.groups
            return shuffle(inputs, n if self.inverse else self.groups)
        return channel_shuffle(inputs, self.groups, self.inverse, self.data_format)

    def _fits(self, inputs: Any) -> bool:
        """Return whether the core can shuffle these inputs; what is wrong with groups, `channel_shuffle` says."""
        runtime, channels = backends.active.runtime(inputs), inputs.shape[-1]
        is_here = runtime.core and runtime.device == "cpu" and type_of(inputs) == "float32"
        return is_here and self.data_format == "channels_last" and bool(channels) and channels % self.groups == 0

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        own = {"groups": self.groups, "inverse": self.inverse, "data_format": self.data_format}
        return {**super().get_config(), **own}
