"""Keras's convolution layers that override only the operation: drop-ins for Keras's own, plus explicit padding.

Arguments, weights' shapes and their order are Keras's: `get_weights` and `set_weights` interchange. `padding` also
takes `((top, bottom), (left, right))`, and `algorithm` names how the convolution is computed (`groupwise.ops`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import keras
from keras import ops

from groupwise import backends
from groupwise.backends import activations
from groupwise.backends.plain_links import Reading
from groupwise.layers.specs import specs_of
from groupwise.ops import grouped_conv2d, separable_conv2d
from groupwise.ops.algorithms import checked_algorithm, finish
from groupwise.ops.convolutions import grouped_kernel
from groupwise.ops.links import linked_conv2d
from groupwise.ops.pairs import Convolution
from groupwise.spec import Padding, normalise_padding, stock_padding

Shape = tuple[int | None, ...]
_register = keras.saving.register_keras_serializable("groupwise")


@dataclass(frozen=True)
class Link:
    """What a convolution does as a link of a chain.

    Attributes:
        activation: what ends the reading of its inputs, where it is given one.
        counts: whether it returns its outputs' statistics, too.
    """

    activation: str = "linear"
    counts: bool = False


class _Convolution2D:
    """What the three convolution layers share: explicit padding, the algorithm's name, what follows, output shapes."""

    padding: Padding
    algorithm: str
    _steps: Callable[[], Sequence[tuple[Any, int]]]
    """() -> kernel and groups of its one convolution, or of its two, the second one 1x1."""

    def _set_padding(self: Any, padding: object, algorithm: str) -> None:
        self.padding, self.algorithm = normalise_padding(padding), checked_algorithm(algorithm)
        if not backends.xla_compiles():
            # Keras then runs the model without XLA, and says so.
            self.supports_jit = False

    def _options(self) -> dict[str, Any]:
        names = ("strides", "padding", "dilation_rate", "data_format", "algorithm")
        return {name: getattr(self, name) for name in names}

    def can_link(self: Any) -> bool:
        """Return whether the core may compute it, and nothing but a bias follows its sums.

        Then it can be a link of a chain, and a batch norm by constants may follow in one call.
        """
        return (
            self.activation is keras.activations.linear
            and self.data_format == "channels_last"
            and self.compute_dtype == "float32"
            and self.algorithm in ("auto", "core")
        )

    def call(
        self: Any,
        inputs: Any,
        residual: Any = None,
        then: str | None = None,
        zeros: Any = None,
        reading: Any = None,
        ending: Any = None,
        link: Link | None = None,
    ) -> Any:
        padding = self.padding if zeros is None else zeros
        if link is not None:
            return self._linked(inputs, padding, reading, link)
        bias, scale = self._ended(ending)
        options = {**self._options(), "padding": padding, "bias": bias, "residual": residual, "scale": scale}
        operation, kernels = self._convolution()
        outputs = operation(inputs, *kernels, activation=then or activations.NAMES.get(self.activation), **options)
        known = then or self.activation is None or self.activation in activations.NAMES
        return outputs if known else self.activation(outputs)

    def unit(self: Any, then: str | None = None, zeros: Any = None, ending: Any = None) -> Convolution:
        """Return what `call` would compute in one convolution, for `ops.pairs`."""
        ((kernel, groups),) = self._steps()
        bias, scale = self._ended(ending)
        geometry = groups, self.strides, self.padding if zeros is None else zeros, self.dilation_rate
        activation = then or activations.NAMES.get(self.activation)
        return Convolution(kernel, geometry, bias, activation, scale, self.algorithm)

    def _ended(self: Any, ending: Any) -> tuple[Any, Any]:
        """Return the bias and the scale of the sums, as a batch norm by constants ends them."""
        bias = self.bias if self.use_bias else None
        if ending is None:
            return bias, None
        mean, scale, shift = ending
        return (shift - mean * scale if bias is None else shift + (bias - mean) * scale), scale

    def _linked(self: Any, inputs: Any, padding: Any, reading: Any, link: Link) -> Any:
        """Return the outputs as a link of a chain.

        Where it counts, they are without a bias, which the batch norm behind takes away, and come with their mean,
        their variance, and the bias.
        """
        if not self.can_link():
            raise ValueError(
                f"link={link}: a layer is a link where it is linear, float32, channels_last and of algorithm "
                '"auto" or "core"; leave link out'
            )
        (kernel, groups), *second = self._steps()
        mean, scale, shift = reading or (None, None, None)
        read = None if reading is None else Reading(mean, scale, shift, link.activation)
        geometry = groups, self.strides, padding, self.dilation_rate
        linked = linked_conv2d(inputs, kernel, geometry, self.algorithm, read, link.counts and not second)
        for kernel, groups in second:
            linked = linked_conv2d(linked[0], kernel, (groups, 1, "valid", 1), self.algorithm, counts=link.counts)
        bias = backends.active.tensors([self.bias]) if self.use_bias else ()
        return (*linked, *bias) if link.counts else reduce(ops.add, bias, linked[0])

    def _convolution(self: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the operation that it computes, and what that takes between inputs and options."""
        ((kernel, groups),) = self._steps()
        return grouped_conv2d, (kernel, groups)

    def compute_output_shape(self: Any, input_shape: Shape) -> Shape:
        batch, height, width, filters = specs_of(self, input_shape)[-1].output_shape
        is_first = self.data_format == "channels_first"
        return (batch, filters, height, width) if is_first else (batch, height, width, filters)

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return {**config, "algorithm": self.algorithm}


class _FilteredConvolution2D(_Convolution2D):
    """The constructor of those that are told how many filters they have, which is Keras's."""

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: object = "valid",
        *args: Any,
        algorithm: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, strides, stock_padding(padding), *args, **kwargs)  # type: ignore[call-arg]
        self._set_padding(padding, algorithm)


def _finish(outputs: Any, bias: Any, residual: Any, activation: str | None, data_format: str, **_: Any) -> Any:
    """Return what follows a convolution that is computed already."""
    if bias is not None:
        bias = ops.reshape(bias, (1, -1, 1, 1) if data_format == "channels_first" else (1, 1, 1, -1))
    return finish(outputs, bias, residual, activation or "linear")


@_register
class GroupedConv2D(_FilteredConvolution2D, keras.layers.Conv2D):
    """`keras.layers.Conv2D`, whose grouped form never goes through a forced XLA compilation.

    All other arguments are Keras's, with their defaults.

    Args:
        padding: "same", "valid" or ((top, bottom), (left, right)).
        algorithm: as for `groupwise.ops.grouped_conv2d`.

    Shapes: (batch, height, width, channels) to (batch, out height, out width, filters); channels first likewise. `call`
    also takes `residual`, of the outputs' shape, or None: activation(convolution + bias + residual). With an
    activation of `groupwise.core.epilogues.ACTIVATIONS`, or none, the C core computes it in one call. For one call,
    `then`, the name of such an activation, stands for a layer's own linear activation, and `zeros`, ((top, bottom),
    (left, right)), for its padding. A model's chains (`running.links`) call it with `link` and `reading`, or with
    `ending`, the mean, scale and shift of a batch norm by constants, which come before the residual.

    Raises:
        ValueError: where groups does not divide the channels, or an argument is not one of its values.

    Examples:
        >>> GroupedConv2D(128, 3, groups=32, padding=((1, 1), (1, 1))).compute_output_shape((16, 56, 56, 128))
        (16, 56, 56, 128)
    """

    def can_link(self) -> bool:
        return super().can_link() and type(self).convolution_op is GroupedConv2D.convolution_op

    def _convolution(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if type(self).convolution_op is GroupedConv2D.convolution_op:
            return grouped_conv2d, (self.kernel, self.groups)
        # A subclass's own, as Keras's documentation shows it for weight standardisation.
        return lambda inputs, **options: _finish(self.convolution_op(inputs, self.kernel), **options), ()

    def _steps(self) -> Sequence[tuple[Any, int]]:
        return [(self.kernel, self.groups)]

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return grouped_conv2d(inputs, kernel, self.groups, **self._options())


@_register
class DepthwiseConv2D(_Convolution2D, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with explicit padding and a choice of algorithm.

    Args, shapes and errors: Keras's; `padding`, `algorithm` and `residual` as for `GroupedConv2D`. Output channel
    `q * depth_multiplier + r` is filter r of input channel q. The default initialiser is Keras's, whose fan-in is
    kh * kw * channels where the truth is kh * kw; pass `depthwise_initializer=DepthwiseHeNormal()` for the truth.

    Examples:
        >>> DepthwiseConv2D(3, depth_multiplier=2, padding="same").compute_output_shape((1, 8, 8, 3))
        (1, 8, 8, 6)
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: object = "valid",
        *args: Any,
        algorithm: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(kernel_size, strides, stock_padding(padding), *args, **kwargs)
        self._set_padding(padding, algorithm)

    def _steps(self) -> Sequence[tuple[Any, int]]:
        return [(grouped_kernel(self.kernel), self.kernel.shape[2])]


@_register
class SeparableConv2D(_FilteredConvolution2D, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with explicit padding and a choice of algorithm; any depth multiplier.

    Args, shapes and errors: Keras's; `padding` as for `GroupedConv2D`, for the depthwise step; `algorithm` likewise,
    for both steps; `residual` after the second.

    Examples:
        >>> SeparableConv2D(4, 3, depth_multiplier=4).compute_output_shape((1, 8, 8, 3))
        (1, 6, 6, 4)
    """

    def _convolution(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return separable_conv2d, (self.depthwise_kernel, self.pointwise_kernel)

    def _steps(self) -> Sequence[tuple[Any, int]]:
        depthwise = grouped_kernel(self.depthwise_kernel), self.depthwise_kernel.shape[2]
        return [depthwise, (self.pointwise_kernel, 1)]
