"""What an eager call costs beside the core's own time: everything that Python and a framework do around it.

    python -m benchmarks.dispatch [--backend B] [--rounds N] [--output FILE]

On an image so small that the core needs a few microseconds, each layer is called four ways: the core's passes alone, on
memory at hand; our operation, with tensors; the layer's own `call`; the layer as a user calls it, which is Keras's
`Layer.__call__` around that. Ten layers follow one another, as in a network, and a time is a tenth of theirs. With
gradients, one backward pass follows, to inputs and weights; on JAX, where nobody differentiates eagerly, there is none.
The ways take turns, and the shortest time of each counts, in this process's time on the processor: so a machine that
does something else disturbs little.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import tables
from benchmarks.timing import PACKAGES, alternate, environment
from groupwise.core import convolution, norm
from groupwise.frameworks import FRAMEWORKS
from groupwise.spec import ConvSpec
from groupwise.timing import seconds

SHAPE = (1, 7, 7, 32)
DEPTH = 10  # layers after one another
REPEATS = 10  # a turn
WAYS = ("core", "operation", "layer's call", "layer")

Work = Callable[[], Any]


class Subject(NamedTuple):
    """What is measured: the core's own work, without gradients and with, our operation, the layer, its options."""

    core: tuple[Work, Work]
    operation: Callable[..., Any]
    layer: Callable[[], Any]
    options: dict[str, Any]


def convolutions(spec: ConvSpec, activation: str) -> tuple[Work, Work]:
    """Return the core's own work of a convolution with bias and activation: its forward pass, and all three."""
    sizes = convolution.sizes(spec)
    arrays = [np.ones(shape, "float32") for shape in (*convolution.shapes(sizes), (spec.out_channels,))]
    addresses = [array.ctypes.data for array in arrays]
    calls = [
        (pass_, sizes, (addresses[first], addresses[second], addresses[result]))
        for pass_, (first, second, result) in enumerate(convolution.ROLES)
    ]
    epilogue = convolution.fusion(activation, bias=addresses[3])

    def forward() -> Any:
        convolution.run(*calls[convolution.FORWARD], epilogue)
        return arrays

    def both() -> Any:
        for call in calls:
            convolution.run(*call)
        return arrays

    return forward, both


def norms(activation: str, training: bool) -> tuple[Work, Work]:
    """Return the core's own work of a batch norm: its forward passes, and all."""
    shapes = dict.fromkeys(("inputs", "outputs", "gradient", "inputs_gradient"), SHAPE)
    shapes |= dict.fromkeys(("gamma", "beta", "mean", "variance"), SHAPE[3:]) | {"sums": (2, SHAPE[3])}
    arrays = {name: np.ones(shape, "float32") for name, shape in shapes.items()}
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    pixels = SHAPE[1] * SHAPE[2]
    options = {"activation": activation, "epsilon": 1e-3, "count": pixels if training else 0, **addresses}

    def forward() -> Any:
        norm.run(norm.NORMALIZE | (norm.MOMENTS if training else 0), pixels, SHAPE[3], **options)
        return arrays

    def both() -> Any:
        forward()
        norm.run(norm.GRADIENT_SUMS | norm.GRADIENT, pixels, SHAPE[3], **options)
        return arrays

    return forward, both


def subjects() -> dict[str, Subject]:
    """Return what is measured, by name."""
    from groupwise import backends, layers, ops

    channels = SHAPE[3]
    assert backends.active.core_norm is not None
    normalise = backends.active.core_norm.normalise

    def normalised(x: Any, gamma: Any, beta: Any, *statistics: Any) -> Any:
        return normalise(x, gamma, beta, statistics or None, 1e-3, None, "relu")[0]

    def grouped_conv2d(x: Any, kernel: Any, bias: Any) -> Any:
        return ops.grouped_conv2d(x, kernel, 8, bias=bias, activation="relu", data_format="channels_last")

    def depthwise_conv2d(x: Any, kernel: Any, bias: Any) -> Any:
        return ops.depthwise_conv2d(x, kernel, bias=bias, activation="relu", data_format="channels_last")

    grouped = partial(layers.GroupedConv2D, channels, 3, groups=8, padding="same", activation="relu")
    depthwise = partial(layers.DepthwiseConv2D, 3, padding="same", activation="relu")
    batch_norm = partial(layers.BatchNormalization, activation="relu")
    narrow, one_each = (
        convolutions(ConvSpec.of(SHAPE, (3, 3, channels // groups, channels), groups), "relu")
        for groups in (8, channels)
    )
    inference, training = (norms("relu", is_training) for is_training in (False, True))
    return {
        "GroupedConv2D": Subject(narrow, grouped_conv2d, grouped, {}),
        "DepthwiseConv2D": Subject(one_each, depthwise_conv2d, depthwise, {}),
        "BatchNormalization, inference": Subject(inference, normalised, batch_norm, {"training": False}),
        "BatchNormalization, training": Subject(training, normalised, batch_norm, {"training": True}),
    }


def rivals(name: str, gradients: bool) -> dict[str, Work]:
    """Return the four ways of a subject."""
    from keras import backend, ops

    subject = subjects()[name]
    layers = [subject.layer() for _ in range(DEPTH)]
    for layer in layers:
        layer.build(SHAPE)
    inputs = ops.convert_to_tensor(np.random.default_rng(0).normal(size=SHAPE).astype("float32"))
    copies = [[_copy(variable) for variable in layer.trainable_variables] for layer in layers]
    constants = [_copy(variable) for variable in layers[0].non_trainable_variables]
    fixed = constants if subject.options.get("training") is False else []
    weights = [weight for some in copies for weight in some]
    own = [getattr(variable, "value", variable) for layer in layers for variable in layer.trainable_variables]
    operations = [partial(_call, subject.operation, some, fixed) for some in copies]
    run = _RUN[backend.backend()]
    work = subject.core[gradients]
    return {
        "core": lambda: [work() for _ in range(DEPTH)],
        "operation": run(_chain(operations, {}), inputs, weights, gradients),
        "layer's call": run(_chain([layer.call for layer in layers], subject.options), inputs, own, gradients),
        "layer": run(_chain(layers, subject.options), inputs, own, gradients),
    }


def _copy(variable: Any) -> Any:
    from keras import ops

    return ops.convert_to_tensor(ops.convert_to_numpy(variable))


def _call(operation: Callable[..., Any], weights: Sequence[Any], fixed: Sequence[Any], inputs: Any) -> Any:
    return operation(inputs, *weights, *fixed)


def _chain(functions: Sequence[Callable[..., Any]], options: dict[str, Any]) -> Callable[[Any], Any]:
    def run(values: Any) -> Any:
        for function in functions:
            values = function(values, **options)
        return values

    return run


def _torch(function: Callable[[Any], Any], inputs: Any, weights: Sequence[Any], gradients: bool) -> Work:
    import torch

    leaves = [tensor.requires_grad_() for tensor in (inputs, *weights)]
    upstream = torch.ones(SHAPE)

    def forward() -> Any:
        with torch.no_grad():
            return function(inputs)

    return (lambda: torch.autograd.grad(function(inputs), leaves, upstream)) if gradients else forward


def _tensorflow(function: Callable[[Any], Any], inputs: Any, weights: Sequence[Any], gradients: bool) -> Work:
    import tensorflow as tf

    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch([inputs, *weights])
            outputs = function(inputs)
        return tape.gradient(outputs, [inputs, *weights])

    return both if gradients else lambda: function(inputs)


def _jax(function: Callable[[Any], Any], inputs: Any, weights: Sequence[Any], gradients: bool) -> Work:
    import jax

    return lambda: jax.block_until_ready(function(inputs))


_RUN = {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}


def measure(name: str, gradients: bool, rounds: int) -> tables.Row:
    """Return a row: the core's own microseconds, and what each other way adds."""
    works = rivals(name, gradients)
    turns = {way: partial(seconds, partial(_repeat, work), process_time) for way, work in works.items()}
    for turn in turns.values():
        turn()
    times = {way: min(taken) / (DEPTH * REPEATS) * 1e6 for way, taken in alternate(turns, rounds).items()}
    row = {"call": name + (", gradients too" if gradients else ""), "the core's own, µs": f"{times['core']:.1f}"}
    return row | {f"{way}, over it": f"{times[way] - times['core']:.0f}" for way in WAYS[1:]}


def _repeat(work: Work) -> None:
    for _ in range(REPEATS):
        work()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=[*FRAMEWORKS], help="one framework; without it each in its own process")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, help="a file whose section for the framework is replaced")
    options = parser.parse_args()
    if options.backend is None:
        for backend in FRAMEWORKS:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.dispatch", *sys.argv[1:], "--backend", backend], check=True
            )
        return
    os.environ["KERAS_BACKEND"] = options.backend
    kinds = (False,) if options.backend == "jax" else (False, True)
    rows = [measure(name, gradients, options.rounds) for gradients in kinds for name in subjects()]
    lines = [environment("keras", PACKAGES[options.backend]), "", *tables.table(rows)]
    print("\n".join(lines))
    if options.output:
        tables.write_section(options.output, FRAMEWORKS[options.backend].title, lines)


if __name__ == "__main__":
    main()
