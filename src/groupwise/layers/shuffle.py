"""ShuffleNet's channel shuffle, as a Keras layer."""

from typing import Any

import keras

from groupwise import backends
from groupwise.backends.conversions import type_of
from groupwise.ops import channel_shuffle
from groupwise.ops.arguments import checked_data_format

Shape = tuple[int | None, ...]
ALGORITHMS = ("auto", "native")


@keras.saving.register_keras_serializable("groupwise")
class ChannelShuffle(keras.layers.Layer):
    """ShuffleNet's channel shuffle as a layer: `groupwise.ops.channel_shuffle`.

    Args:
        groups: a divisor of the channels.
        inverse: whether to undo the shuffle.
        data_format: "channels_last", "channels_first" or None for Keras's setting.
        algorithm: "auto" (the C core on TensorFlow, where it can; XLA cannot compile that) or "native".

    Examples:
        >>> ChannelShuffle(3).compute_output_shape((1, 28, 28, 240))
        (1, 28, 28, 240)
    """

    def __init__(
        self,
        groups: int,
        inverse: bool = False,
        data_format: str | None = None,
        algorithm: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm={algorithm!r}: must be one of {', '.join(ALGORITHMS)}")
        self.groups, self.inverse, self.algorithm = groups, inverse, algorithm
        self.data_format = checked_data_format(data_format)
        if self._may_run_in_core() and not backends.xla_compiles():
            # Keras then runs the model without XLA, and says so.
            self.supports_jit = False

    def call(self, inputs: Any) -> Any:
        shuffle = backends.active.shuffle
        if shuffle is not None and self._may_run_in_core() and self._fits(inputs):
            return shuffle(inputs, self.groups, bool(self.inverse))
        return channel_shuffle(inputs, self.groups, self.inverse, self.data_format)

    def _may_run_in_core(self) -> bool:
        is_last = self.data_format == "channels_last"
        return self.algorithm == "auto" and is_last and self.compute_dtype == "float32"

    def _fits(self, inputs: Any) -> bool:
        """Return whether the core can shuffle these inputs; what is wrong with groups, `channel_shuffle` says."""
        runtime, channels = backends.active.runtime(inputs), inputs.shape[-1]
        is_here = runtime.core and runtime.device == "cpu" and type_of(inputs) == "float32"
        is_divided = type(self.groups) is int and self.groups > 0 and bool(channels) and channels % self.groups == 0
        return bool(is_here and is_divided)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        names = ("groups", "inverse", "data_format", "algorithm")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
