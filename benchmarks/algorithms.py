"""Every algorithm for a grouped convolution, per framework and shape: is depthwise-and-sum faster?

    python -m benchmarks.algorithms [--backend NAME] [--rounds N] [--output FILE]

Each framework runs in a process of its own, the algorithms alternating, compiled (`tf.function`, `jax.jit`; PyTorch
eager). A cell is the time as a multiple of the routing list's choice ("auto"): forward / forward and both gradients.
Below 1 the algorithm would have been the better choice. An algorithm that its first call shows to be over 40 times
slower than "auto" is not repeated.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import PACKAGES, alternate, environment, ratio, timed
from groupwise.frameworks import FRAMEWORKS

HOPELESS = 40.0


def read_shapes(path: Path) -> list[tuple[int, ...]]:
    """Return the rows of a shapes file: batch, height, width, in, out, groups, kernel, stride."""
    rows = [line.split("#")[0].split() for line in path.read_text().splitlines()]
    return [tuple(int(word) for word in row) for row in rows if row]


def passes(function: Callable[[Any, Any], Any], inputs: Any, kernel: Any, gradient: Any) -> list[Callable[[], Any]]:
    """Return two compiled calls that wait for their results: forward, and forward with both gradients (a pair)."""
    import keras

    backend = keras.backend.backend()
    framework = importlib.import_module(backend)
    if backend == "tensorflow":

        @framework.function
        def both(inputs: Any, kernel: Any) -> Any:
            with framework.GradientTape() as tape:
                tape.watch([inputs, kernel])
                outputs = function(inputs, kernel)
            return tape.gradient(outputs, [inputs, kernel], output_gradients=gradient)

        forward = framework.function(function)
        return [lambda: forward(inputs, kernel), lambda: both(inputs, kernel)]
    if backend == "jax":
        # The gradient is an argument: XLA would fold a constant while it compiles.
        both = framework.jit(lambda x, w, gradient: framework.vjp(function, x, w)[1](gradient))
        forward = framework.jit(function)
        wait = framework.block_until_ready
        return [lambda: wait(forward(inputs, kernel)), lambda: wait(both(inputs, kernel, gradient))]

    def both_torch() -> Any:
        leaves = [tensor.detach().requires_grad_() for tensor in (inputs, kernel)]
        function(*leaves).backward(gradient)
        return [leaf.grad for leaf in leaves]

    def forward_torch() -> Any:
        with framework.inference_mode():
            return function(inputs, kernel)

    return [forward_torch, both_torch]


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, str]:
    """Return a cell for each algorithm that can run this shape on the active backend."""
    from keras import ops

    from groupwise.ops import grouped_conv2d
    from groupwise.ops.algorithms import ALGORITHMS

    batch, height, width, channels, filters, groups, size, stride = shape
    random = np.random.default_rng(0)
    inputs = ops.convert_to_tensor(random.normal(size=(batch, height, width, channels)).astype("float32"))
    kernel = ops.convert_to_tensor(random.normal(size=(size, size, channels // groups, filters)).astype("float32"))
    padding = ((size // 2, size // 2),) * 2

    def algorithm(name: str) -> Callable[[Any, Any], Any]:
        return lambda x, w: grouped_conv2d(x, w, groups, stride, padding, algorithm=name)

    gradient = ops.convert_to_tensor(np.asarray(ops.convert_to_numpy(algorithm("auto")(inputs, kernel))))
    names = ["auto", *ALGORITHMS]
    if size > 1:
        names.remove("matmul")
    if channels > groups:
        names.remove("shifted_sum")
    cells: dict[str, list[str]] = {name: [] for name in names}
    for index in (0, 1):
        rivals, limit = {}, 0.0
        for name in names:
            work = passes(algorithm(name), inputs, kernel, gradient)[index]
            work()
            seconds = timed(work)()
            limit = limit or HOPELESS * seconds
            if seconds > limit:
                cells[name].append(f"{HOPELESS * seconds / limit:.0f}")
            else:
                rivals[name] = timed(work)
        times = alternate(rivals, rounds)
        for name in rivals:
            cells[name].append(
                f"{min(times[name]) * 1e3:.1f} ms" if name == "auto" else f"{1 / ratio(times, 'auto', name):.2f}"
            )
    return {name: " / ".join(cell) for name, cell in cells.items()}


def table(rounds: int, shapes: Path) -> None:
    """Print the active backend's rows."""
    from keras import backend

    from groupwise.ops import explain_routing
    from groupwise.ops.algorithms import ALGORITHMS

    names = ["auto", *ALGORITHMS]
    for shape in read_shapes(shapes):
        batch, height, width, channels, filters, groups, size, stride = shape
        chosen = explain_routing((batch, height, width, channels), (size, size, channels // groups, filters), groups)
        cells = measure(shape, rounds)
        title = f"{height}x{width} {channels}->{filters}, {groups} groups, {size}x{size}" + f"/{stride}" * (stride > 1)
        row = [backend.backend(), title, chosen.algorithm, *(cells.get(name, "-") for name in names)]
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Run a process a framework and print one table."""
    from_shapes = Path(__file__).with_name("shapes") / "algorithms.txt"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shapes", type=Path, default=from_shapes)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        table(options.rounds, options.shapes)
        return
    columns = ["native", "depthwise_sum", "split_concat", "block_diagonal", "blocks", "matmul", "shifted_sum"]
    lines = [environment("keras", *PACKAGES.values()), ""]
    lines += ["| framework | shape | runs | auto | " + " | ".join(columns) + " |", "|---" * (len(columns) + 4) + "|"]
    print("\n".join(lines), flush=True)
    start = time.monotonic()
    for backend in options.backend or FRAMEWORKS:
        variables = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-m", "benchmarks.algorithms", "--here", "--rounds", str(options.rounds)]
        command += ["--shapes", str(options.shapes)]
        with subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as run:
            for line in run.stdout or ():
                print(line, end="", flush=True)
                lines.append(line.rstrip())
    print(f"\n{time.monotonic() - start:.0f} s in all")
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
