"""One of the convolutions that run in one pass."""

from typing import Any, NamedTuple

from groupwise.spec import ConvSpec


class Step(NamedTuple):
    """A convolution and what follows it: activation(convolution * scale + bias).

    Attributes:
        kernel: (kernel height, kernel width, in_channels // groups, out_channels).
        spec: the convolution.
        bias, scale: (out_channels,) or None.
        activation: one of `epilogues.ACTIVATIONS`.
    """

    kernel: Any
    spec: ConvSpec
    bias: Any = None
    scale: Any = None
    activation: str = "linear"
