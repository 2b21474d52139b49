"""What the tests of the C core share: specs of every family, their arrays, and each pass's truth."""

import numpy as np

from groupwise.core import convolution
from groupwise.spec import ConvSpec
from tests.reference import Convolution

# |error| <= tolerance * (the same pass over absolute values).
TOLERANCE = {convolution.FORWARD: 1e-5, convolution.INPUT_GRADIENT: 1e-5, convolution.KERNEL_GRADIENT: 3e-5}
PASS_NAMES = ("forward", "input gradient", "kernel gradient")

_ASYMMETRIC = ((0, 2), (3, 1))
SPECS = {
    "depthwise": (
        ConvSpec.of((2, 9, 10, 12), (3, 3, 1, 12), 12),
        ConvSpec.of((2, 11, 8, 19), (3, 5, 1, 38), 19, 2, _ASYMMETRIC),
        ConvSpec.of((1, 9, 13, 33), (3, 2, 1, 33), 33, (1, 3), "valid", (2, 1)),
    ),
    "narrow": (
        ConvSpec.of((2, 9, 10, 32), (3, 3, 4, 32), 8),
        ConvSpec.of((2, 11, 8, 15), (3, 4, 5, 9), 3, (2, 1), _ASYMMETRIC),
        ConvSpec.of((1, 12, 13, 28), (3, 3, 7, 28), 4, 2, "same", (1, 2)),
    ),
    "wide": (
        ConvSpec.of((2, 9, 10, 48), (3, 3, 24, 40), 2),
        ConvSpec.of((2, 11, 8, 17), (3, 2, 17, 21), 1, (1, 2), _ASYMMETRIC, (2, 2)),
        ConvSpec.of((3, 7, 7, 36), (1, 1, 36, 20), 1, 2, "valid"),
    ),
}
"""Small convolutions by the family that runs them: strides, dilation and asymmetric padding in each."""


def random_arrays(spec: ConvSpec, seed: int = 0) -> list[np.ndarray]:
    """Return normal float32 inputs, kernel and gradient to the outputs."""
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype("float32") for shape in convolution.shapes(convolution.sizes(spec))]


def truth(pass_: int, spec: ConvSpec, arrays: list[np.ndarray]) -> np.ndarray:
    """Return one pass in float64, by the definition; `arrays` are inputs, kernel and the outputs' gradient."""
    assert spec.explicit_padding is not None
    reference = Convolution(spec.groups, spec.strides, spec.explicit_padding, spec.dilation_rate)
    if pass_ == convolution.FORWARD:
        return reference.forward(*arrays[:2])
    run = reference.input_gradient if pass_ == convolution.INPUT_GRADIENT else reference.kernel_gradient
    return run(*arrays)


def expected(pass_: int, spec: ConvSpec, arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return one pass's truth and the error allowed at each place."""
    magnitudes = [np.abs(array) for array in arrays]
    return truth(pass_, spec, arrays), TOLERANCE[pass_] * truth(pass_, spec, magnitudes)


def near(actual: np.ndarray, value: np.ndarray, bound: np.ndarray, what: str) -> None:
    """Assert |actual - value| <= bound, elementwise."""
    assert actual.shape == value.shape, what
    error = np.abs(np.asarray(actual, "float64") - value)
    allowed = bound + 1e-30
    assert (error <= allowed).all(), f"{what}: error {(error / allowed).max():.2f} times the bound"
