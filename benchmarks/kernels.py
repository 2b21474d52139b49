"""The C core's convolutions against PyTorch's channels_last (oneDNN), shape by shape, alternating in one run.

    python -m benchmarks.kernels [NETWORK ...] [--family F] [--batch N] [--forward] [--quick] [--output FILE]

NETWORK is a file of `benchmarks/shapes/networks`, all of them without one; --quick takes one shape of each family,
image size, kernel size and stride. Every pass is first checked against the core's reference. The core runs through its
C interface on PyTorch's own threads, as its peer does, into memory that is there already. Arguments and outputs come
out of the caches: each call takes the next of several copies that together are larger. "roofline" is the time that the
machine's limits allow, over the time taken: the larger of operations over the measured peak and bytes over the measured
bandwidth (`measure_machine`); its means are of the shapes that need over 100 microseconds at these limits. --output
replaces this run's section of the file, such as "Batch 16, all passes, avx2", and leaves the others:

    python -m benchmarks.kernels --output benchmarks/results/kernels.md
    python -m benchmarks.kernels --forward --batch 1 --output benchmarks/results/kernels.md
"""

import argparse
import ctypes
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import tables
from benchmarks.specs import FAMILIES, LAYERS, NETWORKS, family, read_specs, representative, title, with_batch
from benchmarks.timing import Times, alternate, environment, geometric_mean, ratio, timed
from groupwise.backends.torch.passes import executor
from groupwise.core import convolution, library
from groupwise.spec import ConvSpec

PASSES = ("forward", "input gradient", "kernel gradient")
THREADS = 2
OUT_OF_CACHE = 96 << 20  # bytes; three times a server's share of the last cache
LEAST_ROOFLINE = 100e-6  # seconds; below, the call itself is what is measured


@dataclass(frozen=True)
class Machine:
    """The most that the machine does: floating-point operations a second, and bytes a second."""

    peak: float
    bandwidth: float


@dataclass(frozen=True)
class Row:
    """One pass of one shape: seconds of the core and of the peer in every round."""

    spec: ConvSpec
    pass_: int
    times: Times

    @property
    def operations(self) -> int:
        return 2 * self.spec.macs * (self.spec.input_shape[0] or 0)

    @property
    def moved(self) -> int:
        """Bytes of both arguments and the result."""
        return 4 * sum(map(math.prod, convolution.shapes(convolution.sizes(self.spec))))

    @property
    def ratio(self) -> float:
        return ratio(self.times, "PyTorch", "core")

    @property
    def seconds(self) -> float:
        return statistics.median(self.times["core"])

    def limit(self, machine: Machine) -> float:
        """Return the seconds that the machine needs at least."""
        return max(self.operations / machine.peak, self.moved / machine.bandwidth)

    def cells(self, machine: Machine) -> tables.Row:
        """Return the table's row."""
        return {
            "shape": title(self.spec),
            "family": family(self.spec),
            "pass": PASSES[self.pass_],
            "core, ms": f"{self.seconds * 1e3:.3f}",
            "PyTorch, ms": f"{statistics.median(self.times['PyTorch']) * 1e3:.3f}",
            "ratio": f"{self.ratio:.2f}",
            "roofline": f"{self.limit(machine) / self.seconds:.0%}",
        }


def measure_machine() -> Machine:
    """Return the best of several ways to compute, oneDNN's and the core's, and of several to move memory.

    No single one was always the fastest: the core's 3x3 convolution in cache passed oneDNN's matrix product by 15%, and
    whether a plain copy, NumPy's (past the caches, a thread a half) or mere reading wins differs between runs.
    """
    images = torch.rand(16, 1024, 28, 28).to(memory_format=torch.channels_last)
    kernel = torch.rand(1024, 1024, 1, 1)
    computing: dict[Callable[[], object], int] = {lambda: torch.conv2d(images, kernel): 2 * images.numel() * 1024}
    for image, size, channels in ((28, 3, 128), (14, 1, 512)):
        spec = ConvSpec.of((8, image, image, channels), (size, size, channels, channels), 1)
        arrays = [np.ones(shape, "float32") for shape in convolution.shapes(convolution.sizes(spec))]
        computing[core_call(convolution.FORWARD, spec, *arrays)] = 2 * spec.macs * 8
    source, target = torch.rand(64 << 20), torch.zeros(64 << 20)
    halves = list(zip(np.split(target.numpy(), THREADS), np.split(source.numpy(), THREADS), strict=True))
    with ThreadPoolExecutor(THREADS) as pool:
        moving: dict[Callable[[], object], int] = {
            lambda: target.copy_(source): 2 * source.nbytes,
            lambda: list(pool.map(lambda half: np.copyto(*half), halves)): 2 * source.nbytes,
            lambda: torch.dot(source, target): 2 * source.nbytes,
        }
        peak, bandwidth = (
            max(work / min(alternate({"": timed(call)}, 10)[""]) for call, work in calls.items())
            for calls in (computing, moving)
        )
    return Machine(peak, bandwidth)


def peer_call(pass_: int, spec: ConvSpec, a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    """Return PyTorch's call of one pass on the same numbers, images channels_last, kernels its own OIHW."""
    assert spec.explicit_padding is not None
    (top, bottom), (left, right) = spec.explicit_padding
    if (top, left) != (bottom, right):  # TensorFlow's "same" at a stride: the peer gets a padded image, unmeasured
        top, left = bottom, right
    sizes = (list(spec.strides), [top, left], list(spec.dilation_rate))
    if pass_ == convolution.FORWARD:
        x, w = _images(a), _kernel(b)
        return lambda: torch.conv2d(x, w, None, *sizes, spec.groups)
    if pass_ == convolution.INPUT_GRADIENT:
        x, y, w = _images(np.empty(spec.input_shape, "float32")), _images(a), _kernel(b)
    else:
        x, y, w = _images(a), _images(b), _kernel(np.empty(spec.kernel_shape, "float32"))
    wanted = [pass_ == convolution.INPUT_GRADIENT, pass_ == convolution.KERNEL_GRADIENT, False]
    return lambda: torch.ops.aten.convolution_backward(y, x, w, None, *sizes, False, [0, 0], spec.groups, wanted)


def _images(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _kernel(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(3, 2, 0, 1).contiguous()


def core_call(pass_: int, spec: ConvSpec, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> Callable[[], object]:
    """Return the core's call through its C interface, the arguments converted beforehand."""
    sizes = convolution.struct(convolution.sizes(spec))
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (a, b, out)]  # these keep their arrays alive
    function = library.load().gw_convolve
    threads = executor()
    return lambda: function(pass_, ctypes.byref(sizes), *pointers, None, threads, None)


def measure(spec: ConvSpec, pass_: int, rounds: int) -> Row:
    """Check one pass of one shape, then time it."""
    shapes = convolution.shapes(convolution.sizes(spec))
    first, second, result = (shapes[role] for role in convolution.ROLES[pass_])
    random = np.random.default_rng(0)
    a, b = (random.random(shape, "float32") - 0.5 for shape in (first, second))
    check(spec, pass_, a, b)
    copies = max(2, -(-OUT_OF_CACHE // (4 * sum(map(math.prod, shapes)))))
    trios = [(a.copy(), b.copy(), np.empty(result, "float32")) for _ in range(copies)]
    rivals: dict[str, Iterator[Callable[[], object]]] = {
        "core": itertools.cycle([core_call(pass_, spec, *trio) for trio in trios]),
        "PyTorch": itertools.cycle([peer_call(pass_, spec, *trio[:2]) for trio in trios]),
    }

    def all_copies(name: str) -> Callable[[], object]:
        return lambda: [next(rivals[name])() for _ in range(copies)]

    calls = {name: timed(all_copies(name)) for name in rivals}
    alternate(calls, 1)
    return Row(spec, pass_, {name: [t / copies for t in values] for name, values in alternate(calls, rounds).items()})


def check(spec: ConvSpec, pass_: int, a: np.ndarray, b: np.ndarray) -> None:
    """Raise AssertionError unless the core agrees with its reference, on two images at most."""
    small = with_batch(spec, min(2, len(a)))
    first = a[:2]
    second = b[:2] if pass_ == convolution.KERNEL_GRADIENT else b
    ours = convolution.convolve(pass_, small, first, second)
    truth, bound = (
        convolution.convolve(pass_, small, one, two, family="reference")
        for one, two in ((first, second), (np.abs(first), np.abs(second)))
    )
    tolerance = 3e-5 if pass_ == convolution.KERNEL_GRADIENT else 1e-5
    assert np.all(np.abs(ours - truth) <= tolerance * bound + 1e-30), (spec, PASSES[pass_])


def means(rows: Sequence[Row], machine: Machine) -> list[tables.Row]:
    """Return the table of geometric means by family and pass, and of all."""
    passes = sorted({row.pass_ for row in rows})
    choices = [[pass_] for pass_ in passes] + [passes] * (len(passes) > 1)
    found = []
    for name, wanted in itertools.product((*FAMILIES, "all"), choices):
        chosen = [row for row in rows if name in ("all", family(row.spec)) and row.pass_ in wanted]
        if not chosen:
            continue
        limits = [(row.limit(machine), row.seconds) for row in chosen]
        large = [limit / seconds for limit, seconds in limits if limit > LEAST_ROOFLINE]
        ratios = [row.ratio for row in chosen]
        found.append(
            {
                "family": name,
                "pass": PASSES[wanted[0]] if len(wanted) == 1 else "all",
                "shapes": str(len(chosen)),
                "over PyTorch": f"{geometric_mean(ratios):.2f}",
                "at least": f"{min(ratios):.2f}",
                "roofline": f"{geometric_mean(large):.0%}" if large else "",
                "roofline, at least": f"{min(large):.0%}" if large else "",
            }
        )
    return found


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}, or {LAYERS}")
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forward", action="store_true", help="only the forward pass")
    parser.add_argument("--quick", action="store_true", help="one shape of each family, image size, kernel and stride")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    machine = measure_machine()
    specs = read_specs(options.networks or NETWORKS, options.batch)
    rows: list[Row] = []
    for spec in representative(specs) if options.quick else specs:
        if options.family not in (None, family(spec)):
            continue
        for pass_ in (convolution.FORWARD,) if options.forward else convolution.PASSES:
            rows.append(measure(spec, pass_, options.rounds))
            table = tables.table([rows[-1].cells(machine)])
            print("\n".join(table if len(rows) == 1 else table[2:]), flush=True)
    # No shape shall pass the roofline: the fastest of them counts as a measurement of the peak too.
    machine = Machine(max(machine.peak, *(row.operations / row.seconds for row in rows)), machine.bandwidth)
    run = (
        f"{environment('torch', 'numpy')}, {library.instruction_set()}, {THREADS} threads; {options.rounds} rounds; "
        f"peak {machine.peak / 1e9:.0f} GFLOP/s, bandwidth {machine.bandwidth / 1e9:.0f} GB/s"
    )
    summary = [run, "", *tables.table(means(rows, machine))]
    print("\n".join(["", *summary]))
    if options.output:
        passes = "forward" if options.forward else "all passes"
        parts = [f"Batch {options.batch}", passes, *filter(None, [options.family]), *options.networks]
        parts += [*["quick"] * options.quick, library.instruction_set()]
        lines = [*summary, "", *tables.table([row.cells(machine) for row in rows])]
        tables.write_section(options.output, ", ".join(parts), lines)


if __name__ == "__main__":
    main()
