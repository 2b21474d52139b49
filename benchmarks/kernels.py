"""The C core's convolutions against PyTorch's channels_last (oneDNN), shape by shape, alternating in one run.

    python -m benchmarks.kernels [NETWORK ...] [--family F] [--batch N] [--rounds N] [--output FILE]

NETWORK is a file of `benchmarks/shapes/networks` (all of them without one); `--write-shapes` makes these files from
the networks themselves. Every pass is first checked against the core's reference. The core runs through its C interface
into memory that is there already. Arguments and outputs come out of the caches: each call takes the next of several
copies that together are larger. "roofline" is the time that the machine's limits allow, over the time taken: the larger
of operations over the measured peak (oneDNN's 1x1 convolution of 1,024 channels at 28x28) and bytes over the measured
bandwidth (a copy of 128 MB).
"""

import argparse
import ctypes
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Times, alternate, environment, ratio, timed
from groupwise import native
from groupwise.spec import ConvSpec

FOLDER = Path(__file__).parent / "shapes" / "networks"
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
PASSES = ("forward", "input gradient", "kernel gradient")
OUT_OF_CACHE = 96 << 20  # bytes; three times a server's share of the last cache
LEAST_ROOFLINE = 100e-6  # seconds; below, the call itself is what is measured


@dataclass(frozen=True)
class Row:
    """One pass of one shape: seconds of the core and of the peer in every round, and the machine's limit."""

    spec: ConvSpec
    pass_: int
    times: Times
    limit: float

    @property
    def family(self) -> str:
        name = native.family(self.spec)
        return "dense" if name == "wide" and self.spec.groups == 1 else name

    @property
    def ratio(self) -> float:
        return ratio(self.times, "PyTorch", "core")

    @property
    def roofline(self) -> float:
        return self.limit / float(np.median(self.times["core"]))

    def __str__(self) -> str:
        _, height, width, channels = self.spec.input_shape
        size, _, _, out = self.spec.kernel_shape
        cells = [
            f"{height}x{width}, {channels} to {out}, {self.spec.groups} groups, {size}x{size}/{self.spec.strides[0]}",
            self.family,
            PASSES[self.pass_],
            *(f"{np.median(self.times[rival]) * 1e3:.3f}" for rival in ("core", "PyTorch")),
            f"{self.ratio:.2f}",
            f"{self.roofline:.0%}",
        ]
        return f"| {' | '.join(cells)} |"


def write_shapes() -> None:
    """Write every network's distinct convolutions: height, width, in, out, groups, kernel, stride, padding."""
    import groupwise
    from groupwise.layers import DepthwiseConv2D, GroupedConv2D, SeparableConv2D

    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        specs: dict[tuple[int, ...], None] = {}
        for layer in groupwise.models.create(name)._flatten_layers(include_self=False):
            if not isinstance(layer, GroupedConv2D | DepthwiseConv2D | SeparableConv2D):
                continue
            shape = layer.input.shape
            steps = [(layer.filters, getattr(layer, "groups", 1))] if hasattr(layer, "filters") else []
            if not isinstance(layer, GroupedConv2D):
                steps.insert(0, (shape[3] * layer.depth_multiplier, shape[3]))
            for step, (out, groups) in enumerate(steps):
                kernel, stride, padding = layer.kernel_size[0], layer.strides[0], layer.padding
                if step > 0:  # the pointwise step of a separable convolution
                    kernel, stride, padding = 1, 1, "valid"
                kernel_shape = (kernel, kernel, shape[3] // groups, out)
                spec = ConvSpec.of((1, *shape[1:]), kernel_shape, groups, stride, padding)
                assert spec.explicit_padding is not None
                specs[*shape[1:], out, groups, kernel, stride, *spec.explicit_padding[0]] = None
                shape = spec.output_shape
        lines = ["# height width in out groups kernel stride top bottom", *(" ".join(map(str, row)) for row in specs)]
        (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")


def read_specs(names: list[str], batch: int) -> list[ConvSpec]:
    """Return the distinct convolutions of some networks."""
    specs: dict[ConvSpec, None] = {}
    for name in names:
        for line in (FOLDER / f"{name}.txt").read_text().splitlines()[1:]:
            height, width, channels, out, groups, kernel, stride, top, bottom = map(int, line.split())
            kernel_shape = (kernel, kernel, channels // groups, out)
            padding = ((top, bottom), (top, bottom))
            specs[ConvSpec.of((batch, height, width, channels), kernel_shape, groups, stride, padding)] = None
    return list(specs)


def measure_machine() -> tuple[float, float]:
    """Return floating-point operations a second and bytes a second, at most."""
    images = torch.rand(16, 1024, 28, 28).to(memory_format=torch.channels_last)
    kernel = torch.rand(1024, 1024, 1, 1)
    source, target = torch.rand(32 << 20), torch.empty(32 << 20)
    product = min(alternate({"x": timed(lambda: torch.conv2d(images, kernel))}, 10)["x"])
    copy = min(alternate({"x": timed(lambda: target.copy_(source))}, 10)["x"])
    return 2 * images.numel() * 1024 / product, 2 * source.nbytes / copy


def peer(pass_: int, spec: ConvSpec, a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    """Return PyTorch's call of one pass on the same numbers, images channels_last, kernels its own OIHW."""
    assert spec.explicit_padding is not None
    (top, bottom), (left, right) = spec.explicit_padding
    if (top, left) != (bottom, right):  # TensorFlow's "same" at a stride: the peer gets a padded image, unmeasured
        top, left = bottom, right
    sizes = (list(spec.strides), [top, left], list(spec.dilation_rate))
    if pass_ == native.FORWARD:
        x, w = _images(a), _kernel(b)
        return lambda: torch.conv2d(x, w, None, *sizes, spec.groups)
    if pass_ == native.INPUT_GRADIENT:
        x, y, w = _images(np.empty(spec.input_shape, "float32")), _images(a), _kernel(b)
    else:
        x, y, w = _images(a), _images(b), _kernel(np.empty(spec.kernel_shape, "float32"))
    wanted = [pass_ == native.INPUT_GRADIENT, pass_ == native.KERNEL_GRADIENT, False]
    return lambda: torch.ops.aten.convolution_backward(y, x, w, None, *sizes, False, [0, 0], spec.groups, wanted)


def _images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _kernel(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(3, 2, 0, 1).contiguous()


def measure(spec: ConvSpec, pass_: int, rounds: int, peak: float, bandwidth: float) -> Row:
    """Check one pass of one shape, then time it."""
    shapes = [
        tuple(int(size or 0) for size in shape) for shape in (spec.input_shape, spec.kernel_shape, spec.output_shape)
    ]
    roles = ((0, 1, 2), (2, 1, 0), (0, 2, 1))[pass_]
    moved = 4 * sum(math.prod(shape) for shape in shapes)
    random = np.random.default_rng(0)
    copies = max(2, min(24, -(-OUT_OF_CACHE // moved)))
    arrays = [[random.random(shapes[role], "float32") - 0.5 for role in roles] for _ in range(copies)]
    check(spec, pass_, *arrays[0][:2])
    rivals: dict[str, Iterator[Callable[[], object]]] = {
        "core": itertools.cycle([_call(pass_, spec, *trio) for trio in arrays]),
        "PyTorch": itertools.cycle([peer(pass_, spec, *trio[:2]) for trio in arrays]),
    }

    def all_copies(name: str) -> Callable[[], object]:
        return lambda: [next(rivals[name])() for _ in range(copies)]

    calls = {name: timed(all_copies(name)) for name in rivals}
    alternate(calls, 1)
    times = {name: [t / copies for t in values] for name, values in alternate(calls, rounds).items()}
    operations = 2 * spec.macs * shapes[0][0]
    return Row(spec, pass_, times, max(operations / peak, moved / bandwidth))


def _call(pass_: int, spec: ConvSpec, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Callable[[], object]:
    """Return the core's call through its C interface, the arguments converted beforehand."""
    sizes = (ctypes.c_int64 * 16)(*native.sizes(spec))
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (a, b, out)]
    function = native.library().gw_convolve
    return lambda: function(pass_, ctypes.byref(sizes), *pointers, None, None, None)


def check(spec: ConvSpec, pass_: int, a: np.ndarray, b: np.ndarray) -> None:
    """Raise AssertionError unless the core agrees with its reference, on two images."""
    small = ConvSpec.of(
        (2, *spec.input_shape[1:]), spec.kernel_shape, spec.groups, spec.strides, spec.padding, spec.dilation_rate
    )
    first = a[:2]
    second = b[:2] if pass_ == native.KERNEL_GRADIENT else b
    ours = native.convolve(pass_, small, first, second)
    truth, bound = (
        native.convolve(pass_, small, one, two, family="reference")
        for one, two in ((first, second), (np.abs(first), np.abs(second)))
    )
    tolerance = 3e-5 if pass_ == native.KERNEL_GRADIENT else 1e-5
    assert np.all(np.abs(ours - truth) <= tolerance * bound + 1e-30), (spec, PASSES[pass_])


def means(rows: list[Row]) -> list[str]:
    """Return the table of geometric means by family and pass."""
    lines = ["| family | pass | shapes | over PyTorch | least | roofline | least |", "|---|---|---|---|---|---|---|"]
    for family in sorted({row.family for row in rows}):
        for pass_ in (0, 1, 2, None):
            chosen = [row for row in rows if row.family == family and pass_ in (row.pass_, None)]
            if not chosen:
                continue
            large = [row.roofline for row in chosen if row.limit > LEAST_ROOFLINE]
            ratios = [row.ratio for row in chosen]
            cells = [
                family,
                "all" if pass_ is None else PASSES[pass_],
                str(len(chosen)),
                f"{geometric_mean(ratios):.2f}",
                f"{min(ratios):.2f}",
                *((f"{geometric_mean(large):.0%}", f"{min(large):.0%}") if large else ("", "")),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def geometric_mean(values: list[float]) -> float:
    """Return the n-th root of the product."""
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--family", help="only depthwise, narrow, wide or dense")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forward", action="store_true", help="only the forward pass")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--write-shapes", action="store_true")
    arguments = parser.parse_args()
    if arguments.write_shapes:
        write_shapes()
        return
    torch.set_num_threads(2)
    peak, bandwidth = measure_machine()
    header = [
        f"{environment('torch', 'numpy')}, {native.instruction_set()}; peak {peak / 1e9:.0f} GFLOP/s, "
        f"bandwidth {bandwidth / 1e9:.0f} GB/s; batch {arguments.batch}, {arguments.rounds} rounds",
        "",
        "| shape | family | pass | core, ms | PyTorch, ms | ratio | roofline |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(header), flush=True)
    rows = []
    for spec in read_specs(arguments.networks or list(NETWORKS), arguments.batch):
        family = native.family(spec)
        if arguments.family not in (None, "dense" if family == "wide" and spec.groups == 1 else family):
            continue
        for pass_ in (0,) if arguments.forward else native.PASSES:
            rows.append(measure(spec, pass_, arguments.rounds, peak, bandwidth))
            print(rows[-1], flush=True)
    print("\n".join(["", *means(rows)]))
    if arguments.output:
        arguments.output.write_text("\n".join([*header, *map(str, rows), "", *means(rows)]) + "\n")


if __name__ == "__main__":
    main()
