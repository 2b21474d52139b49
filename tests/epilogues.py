"""What the tests of a convolution's epilogue share: bias, residual, scale, activation; arrays and their truth."""

from collections.abc import Callable
from typing import Any

import numpy as np

from groupwise.core import convolution
from groupwise.core.epilogues import ACTIVATIONS
from groupwise.spec import ConvSpec
from tests.activations import TRUTH
from tests.frameworks import value_and_every_gradient
from tests.passes import SPECS, TOLERANCE, near, random_arrays, truth

EXTRAS = ((), ("bias",), ("residual",), ("bias", "residual", "scale"))
POINTWISE = ConvSpec.of((2, 9, 10, 24), (1, 1, 24, 20), 1)
ONE_EACH = [*(specs[1] for specs in SPECS.values()), SPECS["wide"][0], POINTWISE]
"""Depthwise, narrow groups, dense, wide groups, 1x1."""


def arrays_of(spec: ConvSpec, extras: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return float32 inputs, kernel, those of bias, residual and scale that are wanted, and the outputs' gradient."""
    inputs, kernel, gradient = random_arrays(spec)
    random = np.random.default_rng(1)
    # Outputs on both sides of 0 and of 6.
    deviation = truth(convolution.FORWARD, spec, [inputs, kernel]).std()
    arrays = {"inputs": inputs, "kernel": (kernel * 4 / deviation).astype("float32")}
    more = {"bias": random.normal(size=spec.out_channels), "residual": 3 * random.normal(size=gradient.shape)}
    more["scale"] = random.normal(size=spec.out_channels)
    return {**arrays, **{name: more[name].astype("float32") for name in extras}, "gradient": gradient}


def exact(spec: ConvSpec, arrays: dict[str, np.ndarray], activation: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the outputs and each argument's gradient in float64, and the error allowed at each place.

    Where the activation sees a number so near to an edge that rounding decides, the gradient is set to 0 in `arrays`.
    """
    wide = {name: array.astype("float64") for name, array in arrays.items()}
    size = {name: np.abs(array) for name, array in wide.items()}
    after = [wide[name] for name in ("bias", "residual") if name in wide]
    scale, scale_size = wide.get("scale", np.ones(())), size.get("scale", np.ones(()))
    sums = truth(convolution.FORWARD, spec, [wide["inputs"], wide["kernel"]])
    sums_size = truth(convolution.FORWARD, spec, [size["inputs"], size["kernel"]])
    total, bound = sum(after, sums * scale), sum(map(np.abs, after), sums_size * scale_size)
    bound = bound * TOLERANCE[convolution.FORWARD]
    for edge in TRUTH[activation].edges:
        arrays["gradient"][np.abs(total - edge) <= bound] = 0
    passed = arrays["gradient"] * TRUTH[activation].slope(total)
    # A curve's slope is as inexact as what it is taken of.
    reach = np.abs(passed)
    inexact = 0 * reach if ACTIVATIONS[activation].reads_outputs else np.abs(arrays["gradient"]) * (bound + 1e-6)
    results = {"outputs": (TRUTH[activation].value(total), 1.2 * bound)}
    for pass_, name in ((convolution.INPUT_GRADIENT, "inputs"), (convolution.KERNEL_GRADIENT, "kernel")):
        value = truth(pass_, spec, [wide["inputs"], wide["kernel"], passed * scale])
        allowed = (TOLERANCE[pass_] * reach + inexact) * scale_size
        results[name] = value, truth(pass_, spec, [size["inputs"], size["kernel"], allowed])
    results["bias"] = passed.sum((0, 1, 2)), (1e-5 * reach + inexact).sum((0, 1, 2))
    results["residual"] = passed, inexact
    results["scale"] = (passed * sums).sum((0, 1, 2)), ((1e-5 * reach + inexact) * sums_size).sum((0, 1, 2))
    return results


def check(
    function: Callable[..., Any], spec: ConvSpec, extras: tuple[str, ...], activation: str, compiled: bool = False
) -> None:
    """Compare function(inputs, kernel, bias, residual, scale), those by name that are wanted, and every gradient."""
    arrays = arrays_of(spec, extras)
    wanted = exact(spec, arrays, activation)
    gradient = arrays.pop("gradient")
    named = lambda *tensors: function(**dict(zip(arrays, tensors, strict=True)))  # noqa: E731
    results = value_and_every_gradient(named, list(arrays.values()), gradient, compiled)
    for name, result in zip(("outputs", *arrays), results, strict=True):
        near(result, *wanted[name], name)
