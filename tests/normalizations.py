"""What the tests of batch norm share: the definition and its gradients in float64, and arrays for them."""

from typing import Any

import numpy as np

from tests.activations import TRUTH

EPSILON = 1e-3
IMAGES = ("inputs", "residual", "gradient")


def random_arrays(shape: tuple[int, ...], seed: int = 0, mean: float = 0.5, deviation: float = 2.0) -> dict[str, Any]:
    """Return float32 inputs, residual and outputs' gradient of `shape`, and gamma and beta of its last size."""
    random = np.random.default_rng(seed)
    arrays = {name: random.normal(size=shape) for name in IMAGES}
    arrays["inputs"] = arrays["inputs"] * deviation + mean
    arrays |= {"gamma": random.uniform(0.5, 3, shape[-1:]), "beta": random.normal(size=shape[-1:]) + 1}
    return {name: array.astype("float32") for name, array in arrays.items()}


def truth(
    arrays: dict[str, Any], activation: str, residual: bool, statistics: tuple[Any, Any] | None = None
) -> dict[str, Any]:
    """Return what every pass writes, by the definition; `statistics`: constant mean and variance, or the batch's."""
    wide = {name: np.asarray(array, "float64") for name, array in arrays.items()}
    x, gradient = wide["inputs"], wide["gradient"]
    axes = tuple(range(x.ndim - 1))
    mean, variance = (x.mean(axes), x.var(axes)) if statistics is None else statistics
    scale = 1 / np.sqrt(np.asarray(variance, "float64") + EPSILON)
    normalised = (x - mean) * scale
    total = normalised * wide["gamma"] + wide["beta"] + (wide["residual"] if residual else 0)
    passed = gradient * TRUTH[activation].slope(total)
    sums = np.stack([passed.sum(axes), (passed * normalised).sum(axes)])
    shared = 0 if statistics is not None else (sums[0] + normalised * sums[1]) * x.shape[-1] / x.size
    return {
        "mean": mean,
        "variance": variance,
        "outputs": TRUTH[activation].value(total),
        "sums": sums,
        "residual_gradient": passed,
        "inputs_gradient": wide["gamma"] * scale * (passed - shared),
    }
