"""The activations that the core computes, as Keras's functions, and their derivatives in `keras.ops`."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from groupwise.core.epilogues import ACTIVATIONS

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    name: getattr(keras.activations, row.keras) for name, row in ACTIVATIONS.items()
}
NAMES = {function: name for name, function in FUNCTIONS.items()}
"""What the core computes while an output is still in a register; others follow as an operation of their own."""


def passed(gradient: Any, seen: Any, activation: str) -> Any:
    """Return what of the outputs' gradient, or of a tangent, an activation lets through.

    Args:
        gradient: an array. seen: the activation's outputs, if it `reads_outputs`, or what it was computed from.
        activation: one of `ACTIVATIONS`.
    """
    return ACTIVATIONS[activation].passed(ops, gradient, seen)
