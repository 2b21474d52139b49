"""The networks' convolutions, from `benchmarks/shapes/networks`; `python -m benchmarks.specs` writes them anew.

"layers" are some of them, `benchmarks/shapes/layers.txt`: the depthwise and the grouped layers that are compared by
themselves.
"""

from collections.abc import Iterable
from pathlib import Path

from groupwise.core import convolution
from groupwise.spec import ConvSpec

SHAPES = Path(__file__).parent / "shapes"
FOLDER = SHAPES / "networks"
LAYERS = "layers"
NETWORKS = (
    "resnext50_32x4d",
    "resnext101_64x4d",
    "resnext29_8x64d_cifar10",
    "seresnext50_32x4d",
    *(f"shufflenet_g{groups}_w1" for groups in (1, 2, 3, 4, 8)),
    "mobilenetv1_100",
    "xception",
    "efficientnet_lite0",
)
FAMILIES = ("narrow", "depthwise", "wide", "dense")


def read_specs(names: Iterable[str], batch: int) -> list[ConvSpec]:
    """Return the distinct convolutions of some networks, or of LAYERS."""
    specs: dict[ConvSpec, None] = {}
    for name in names:
        folder = SHAPES if name == LAYERS else FOLDER
        for line in (folder / f"{name}.txt").read_text().splitlines()[1:]:
            height, width, channels, out, groups, kernel, stride, top, bottom = map(int, line.split())
            kernel_shape = (kernel, kernel, channels // groups, out)
            padding = ((top, bottom), (top, bottom))
            specs[ConvSpec.of((batch, height, width, channels), kernel_shape, groups, stride, padding)] = None
    return list(specs)


def representative(specs: Iterable[ConvSpec]) -> list[ConvSpec]:
    """Return the first convolution of every family, image size, kernel size and stride."""
    first: dict[tuple[object, ...], ConvSpec] = {}
    for spec in specs:
        first.setdefault((family(spec), spec.input_shape[1:3], spec.kernel_shape[:2], spec.strides), spec)
    return list(first.values())


def with_batch(spec: ConvSpec, batch: int) -> ConvSpec:
    """Return the same convolution of another number of images."""
    shape = (batch, *spec.input_shape[1:])
    return ConvSpec.of(shape, spec.kernel_shape, spec.groups, spec.strides, spec.padding, spec.dilation_rate)


def family(spec: ConvSpec) -> str:
    """Return which of FAMILIES runs it in the core; "dense" are the wide ones of one group."""
    name = convolution.family(spec)
    return "dense" if name == "wide" and spec.groups == 1 else name


def title(spec: ConvSpec) -> str:
    """Return a convolution's sizes as the tables name it."""
    _, height, width, channels = spec.input_shape
    size, _, _, out = spec.kernel_shape
    return f"{height}x{width}, {channels} to {out}, {spec.groups} groups, {size}x{size}/{spec.strides[0]}"


def write_shapes() -> None:
    """Write every network's distinct convolutions: height, width, in, out, groups, kernel, stride, padding."""
    import groupwise
    from groupwise.keras_private import layers_within
    from groupwise.layers import DepthwiseConv2D, GroupedConv2D, SeparableConv2D
    from groupwise.layers.specs import specs_of

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        specs: dict[tuple[int | None, ...], None] = {}
        for layer in layers_within(groupwise.models.create(name), include_self=False):
            if not isinstance(layer, GroupedConv2D | DepthwiseConv2D | SeparableConv2D):
                continue
            for spec in specs_of(layer, (1, *layer.input.shape[1:])):
                assert spec.explicit_padding is not None
                sizes = (*spec.input_shape[1:], spec.out_channels, spec.groups, spec.kernel_shape[0], spec.strides[0])
                specs[*sizes, *spec.explicit_padding[0]] = None
        lines = ["# height width in out groups kernel stride top bottom", *(" ".join(map(str, row)) for row in specs)]
        (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write_shapes()
