"""The C core called through each framework against that framework's stock convolution, shape by shape.

    python -m benchmarks.frameworks [NETWORK ...] [--backend B] [--family F] [--all] [--batch N] [--output FILE]

Each framework runs in a process of its own: `grouped_conv2d(algorithm="core")`, compiled (`jax.jit`, `tf.function`;
PyTorch eager), against `keras.ops.conv` and `keras.ops.depthwise_conv`, on PyTorch against `F.conv2d` in channels_last,
alternating, on the same numbers in memory that both have just used. Outputs and gradients are compared first. Without
--all one shape of each family, image size, kernel size and stride is measured.

A stock call may take many seconds on JAX and TensorFlow. Both sides then run fewer images, the most for which the stock
call should end within the time cap; the table's column "batch" says how many. A call over a second is timed once,
after compiling. --output replaces the section of each framework in the file and leaves the others.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.algorithms import passes
from benchmarks.specs import FAMILIES, LAYERS, NETWORKS, family, read_specs, representative, title, with_batch
from benchmarks.timing import PACKAGES, alternate, environment, geometric_mean, ratio, repeated, timed
from groupwise.core import convolution
from groupwise.frameworks import FRAMEWORKS
from groupwise.spec import ConvSpec

STOCK = {
    name: "PyTorch channels_last" if name == "torch" else f"stock Keras on {framework.title}"
    for name, framework in FRAMEWORKS.items()
}
PASSES = ("forward", "forward and gradients")
TIME_CAP = 4.0  # seconds of a stock call
ONCE = 1.0  # seconds; a longer stock call is timed once
ROUND = 0.02  # seconds of a rival's turn: calls are repeated, so that neither the clock nor a late wake-up matters

NO_PADDING = ((0, 0), (0, 0))

Call = Callable[[], Any]


def rivals(spec: ConvSpec) -> dict[str, list[Call]]:
    """Return both sides' calls, forward and forward with gradients, on the active backend and the same numbers."""
    from keras import backend, ops

    from groupwise.ops import grouped_conv2d

    random = np.random.default_rng(0)
    images, kernel, gradient = (
        random.random(shape, "float32") - 0.5 for shape in convolution.shapes(convolution.sizes(spec))
    )
    tensor = ops.convert_to_tensor

    def core(x: Any, w: Any) -> Any:
        return grouped_conv2d(x, w, spec.groups, spec.strides, spec.padding, algorithm="core")

    stock, before = (_torch if backend.backend() == "torch" else _keras)(spec)
    if backend.backend() == "torch":
        stock_kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    else:
        stock_kernel = kernel.reshape(*kernel.shape[:2], spec.in_channels, -1) if spec.is_depthwise else kernel
    padded = np.pad(images, ((0, 0), *before, (0, 0)))
    return {
        "core": passes(core, tensor(images), tensor(kernel), tensor(gradient)),
        "stock": passes(stock, tensor(padded), tensor(stock_kernel), tensor(gradient)),
    }


def _keras(spec: ConvSpec) -> tuple[Callable[[Any, Any], Any], Any]:
    """Return Keras's own convolution, and what to pad the images with before, unmeasured.

    Its "same" differs from the networks' symmetric padding at a stride.
    """
    from keras import ops

    same = ConvSpec.of(spec.input_shape, spec.kernel_shape, spec.groups, spec.strides, "same").explicit_padding
    name, before = ("same", NO_PADDING) if spec.explicit_padding == same else ("valid", spec.explicit_padding)
    convolve = ops.depthwise_conv if spec.is_depthwise else ops.conv
    return lambda x, w: convolve(x, w, spec.strides, name), before


def _torch(spec: ConvSpec) -> tuple[Callable[[Any, Any], Any], Any]:
    """Return PyTorch's own convolution of NHWC images, channels_last to it, and an OIHW kernel, and the padding before.

    It pads symmetrically; other padding is not measured.
    """
    from torch.nn import functional

    assert spec.explicit_padding is not None
    (top, bottom), (left, right) = spec.explicit_padding
    sides, before = ((top, left), NO_PADDING) if (top, left) == (bottom, right) else ((0, 0), spec.explicit_padding)

    def stock(x: Any, w: Any) -> Any:
        outputs = functional.conv2d(x.permute(0, 3, 1, 2), w, None, spec.strides, sides, 1, spec.groups)
        return outputs.permute(0, 2, 3, 1)

    return stock, before


def check(spec: ConvSpec, calls: dict[str, list[Call]]) -> None:
    """Raise AssertionError unless both sides give the same outputs and gradients, to float32's rounding."""
    from keras import backend, ops

    assert spec.explicit_padding is not None
    (top, _), (left, _) = spec.explicit_padding
    found = {name: [forward(), *both()] for name, (forward, both) in calls.items()}
    for index, (ours, theirs) in enumerate(zip(found["core"], found["stock"], strict=True)):
        a, b = (ops.convert_to_numpy(array) for array in (ours, theirs))
        if index == 1 and a.shape != b.shape:  # the gradient of padded images
            b = b[:, top : top + a.shape[1], left : left + a.shape[2]]
        if index == 2:
            b = b.transpose(2, 3, 1, 0) if backend.backend() == "torch" else b.reshape(a.shape)
        largest = float(np.abs(b).max())
        difference = float(np.abs(a - b).max())
        assert difference <= 1e-4 * largest, f"{title(spec)}, result {index}: differs by {difference} of {largest}"


def fitting_batch(seconds: float, batch: int) -> int:
    """Return `batch`, or the largest of its quarters whose stock call should end in time.

    Args:
        seconds: of a call with one image.
    """
    while batch > 1 and seconds * batch > TIME_CAP:
        batch = max(1, batch // 4)
    return batch


def measure(spec: ConvSpec, rounds: int) -> list[tables.Row]:
    """Check a shape on one image, then time both passes."""
    batch = spec.input_shape[0] or 1
    single = rivals(with_batch(spec, 1))
    check(with_batch(spec, 1), single)
    prepared: dict[int, dict[str, list[Call]]] = {1: single}
    rows = []
    for index, pass_ in enumerate(PASSES):
        images = fitting_batch(timed(single["stock"][index])(), batch)
        if images not in prepared:
            prepared[images] = rivals(with_batch(spec, images))
        calls = {name: sides[index] for name, sides in prepared[images].items()}
        for call in calls.values():
            call()  # compiles
        seconds = {name: timed(call)() for name, call in calls.items()}
        turns = {name: repeated(call, seconds[name], ROUND) for name, call in calls.items()}
        if seconds["stock"] < ONCE:
            times = alternate(turns, rounds)
        else:
            times = {"core": [turns["core"]()], "stock": [seconds["stock"]]}
        rows.append(
            {
                "shape": title(spec),
                "family": family(spec),
                "pass": pass_,
                "batch": str(images),
                "core, ms": f"{np.median(times['core']) * 1e3:.3f}",
                "stock, ms": f"{np.median(times['stock']) * 1e3:.3f}",
                "ratio": f"{ratio(times, 'stock', 'core'):.2f}",
            }
        )
    return rows


def means(rows: Sequence[tables.Row]) -> list[tables.Row]:
    """Return the table of geometric means by family and pass."""
    found = []
    for name in FAMILIES:
        for pass_ in PASSES:
            ratios = [float(row["ratio"]) for row in rows if (row["family"], row["pass"]) == (name, pass_)]
            if ratios:
                mean, least = geometric_mean(ratios), min(ratios)
                cells = (name, pass_, str(len(ratios)), f"{mean:.2f}", f"{least:.2f}")
                found.append(dict(zip(("family", "pass", "shapes", "over stock", "at least"), cells, strict=True)))
    return found


def main() -> None:
    """Run a process a framework; print its tables, and write them to --output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}, or {LAYERS}")
    parser.add_argument("--backend", action="append", choices=STOCK)
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--all", action="store_true", help="every shape, not one of each kind")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        _measure_here(options)
        return
    for backend in options.backend or STOCK:
        run = f"{environment('keras', PACKAGES[backend])}; batch {options.batch} at most, {options.rounds} rounds"
        rows = _rows_of_process(backend)
        summary = [run, "", *tables.table(means(rows))]
        print("\n".join(["", *summary]))
        if options.output:
            parts = [f"Over {STOCK[backend]}", *filter(None, [options.family]), *options.networks]
            lines = [*summary, "", *tables.table(rows)]
            tables.write_section(options.output, ", ".join([*parts, *["all shapes"] * options.all]), lines)


def _measure_here(options: argparse.Namespace) -> None:
    """Print the active backend's rows, the table's head before the first."""
    specs = read_specs(options.networks or NETWORKS, options.batch)
    head = 0
    for spec in specs if options.all else representative(specs):
        if options.family in (None, family(spec)):
            print("\n".join(tables.table(measure(spec, options.rounds))[head:]), flush=True)
            head = 2


def _rows_of_process(backend: str) -> list[tables.Row]:
    """Measure in a new process on `backend` with this process's arguments, print its rows as they come, return them."""
    variables = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "benchmarks.frameworks", "--here", *sys.argv[1:]]
    lines = []
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(f"the process on {backend} ended with {process.returncode}; what it printed above says why")
    return [row for table in tables.read_tables("".join(lines)) for row in table]


if __name__ == "__main__":
    main()
