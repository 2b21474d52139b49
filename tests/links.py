"""What the tests of links share: arrays for them, and the definition and its gradients in float64."""

from typing import Any

import numpy as np

from groupwise.core import convolution
from groupwise.spec import ConvSpec
from tests.activations import TRUTH
from tests.passes import TOLERANCE, random_arrays, truth

READING = ("mean", "scale", "shift")
UPSTREAM = ("to_outputs", "to_mean", "to_variance")
AXES = (0, 1, 2)
Bounded = tuple[np.ndarray, np.ndarray]


def arrays_of(spec: ConvSpec, activation: str | None, counts: bool) -> dict[str, np.ndarray]:
    """Return float32 inputs, kernel, what they are read by unless `activation` is None, and the gradients to results.

    Each of these matters to the arguments' gradients as much as the others. What the activation sees is apart from its
    edges, where rounding would decide.
    """
    inputs, kernel, gradient = random_arrays(spec)
    random = np.random.default_rng(1)
    arrays = {"inputs": inputs, "kernel": kernel}
    if activation is not None:
        channels = spec.input_shape[3:]
        arrays |= {
            "mean": random.normal(size=channels),
            "scale": random.uniform(1, 3, channels) * random.choice([-1, 1], channels),
            "shift": random.normal(size=channels) + 1,
        }
        before = (inputs - arrays["mean"]) * arrays["scale"] + arrays["shift"]
        for edge in TRUTH[activation].edges:
            arrays["inputs"] = arrays["inputs"] + (np.abs(before - edge) < 1e-3) * (3e-3 / arrays["scale"])
    arrays["to_outputs"] = gradient
    if counts:
        pixels = gradient.size / spec.out_channels
        arrays["to_mean"], arrays["to_variance"] = pixels * random.normal(size=(2, spec.out_channels))
    return {name: array.astype("float32") for name, array in arrays.items()}


def exact(spec: ConvSpec, arrays: dict[str, np.ndarray], activation: str | None) -> dict[str, Bounded]:
    """Return outputs, their statistics if there are gradients to them, and the gradient to each argument by its name.

    Each is a pair: the value, and the error allowed at each place.
    """
    given = {name: array.astype("float64") for name, array in arrays.items()}
    read, before, factor = given["inputs"], given["inputs"], np.ones(())
    if activation is not None:
        before = (given["inputs"] - given["mean"]) * given["scale"] + given["shift"]
        read, factor = TRUTH[activation].value(before), TRUTH[activation].slope(before)
    kernel = given["kernel"]
    outputs, size = _both(convolution.FORWARD, spec, [(read, np.abs(read) + np.abs(before)), (kernel, np.abs(kernel))])
    results = {"outputs": (outputs, size)}
    total = given["to_outputs"]
    reach = np.abs(total)
    if "to_mean" in given:
        pixels = total.size / spec.out_channels
        mean, variance = outputs.mean(AXES), outputs.var(AXES)
        to_mean, to_variance = given["to_mean"] / pixels, 2 * given["to_variance"] / pixels
        total = total + to_mean + (outputs - mean) * to_variance
        reach = reach + np.abs(to_mean) + (np.abs(outputs) + np.abs(mean)) * np.abs(to_variance)
        results["statistics"] = np.stack([mean, variance]), np.stack([size.mean(AXES), 2 * (size**2).mean(AXES) / 1e-6])
    operands = [(read, np.abs(read) + np.abs(before)), (kernel, np.abs(kernel)), (total, reach)]
    to_read, bound = _both(convolution.INPUT_GRADIENT, spec, operands)
    passed, bound = to_read * factor, bound * (1 + np.abs(before))
    results["inputs"] = passed, bound
    results["kernel"] = _both(convolution.KERNEL_GRADIENT, spec, operands)
    if activation is not None:
        scale, deviation = given["scale"], given["inputs"] - given["mean"]
        results["inputs"] = passed * scale, bound * np.abs(scale)
        results["mean"] = -scale * passed.sum(AXES), np.abs(scale) * bound.sum(AXES)
        results["scale"] = (passed * deviation).sum(AXES), (bound * np.abs(deviation)).sum(AXES)
        results["shift"] = passed.sum(AXES), bound.sum(AXES)
    return results


def _both(pass_: int, spec: ConvSpec, arrays: list[Any]) -> Bounded:
    """Return a pass of arrays, each beside its magnitude, and the error allowed."""
    values, sizes = ([pair[i] for pair in arrays] for i in (0, 1))
    return truth(pass_, spec, values), TOLERANCE[pass_] / 10 * truth(pass_, spec, sizes)
