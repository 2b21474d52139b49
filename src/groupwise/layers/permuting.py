"""A fixed reordering of the channels, as a Keras layer."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from groupwise.ops.arguments import checked_data_format

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable("groupwise")
class PermuteChannels(keras.layers.Layer):
    """Put the channels into another order: output channel i is input channel `order[i]`.

    Args:
        order: every channel's number once.
        data_format: "channels_last", "channels_first" or None for Keras's setting.

    Raises:
        ValueError: where `order` is no permutation.

    Examples:
        >>> import numpy as np
        >>> np.asarray(PermuteChannels([2, 0, 1])(np.array([[[[5.0, 6.0, 7.0]]]]))).ravel().tolist()
        [7.0, 5.0, 6.0]
    """

    def __init__(self, order: Sequence[int], data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = [int(channel) for channel in order]
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"order={self.order}: must name every channel from 0 to {len(self.order) - 1} once")
        self.data_format = checked_data_format(data_format)

    def call(self, inputs: Any) -> Any:
        return ops.take(inputs, ops.convert_to_tensor([*self.order], "int32"), 1 if self._is_first() else -1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        channels = input_shape[1 if self._is_first() else -1]
        if channels != len(self.order):
            raise ValueError(f"order of {len(self.order)} channels: the input of shape {input_shape} has {channels}")
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "order": self.order, "data_format": self.data_format}

    def _is_first(self) -> bool:
        return bool(self.data_format == "channels_first")
