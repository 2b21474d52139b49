"""The activations that may end a convolution or a batch norm: one row each, in the order of `GwActivation`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Activation:
    """One activation.

    Attributes:
        keras: its name in `keras.activations`.
        passed: (`keras.ops`, the outputs' gradient or a tangent, seen) -> what of it passes; seen are the outputs or,
            as well or instead, what they were computed from.
        reads_outputs: whether the outputs tell what passes.
    """

    keras: str
    passed: Callable[[Any, Any, Any], Any]
    reads_outputs: bool = True


def _passed_where_positive(ops: Any, gradient: Any, seen: Any) -> Any:
    # What is not a number lets it pass: a training that diverges must be seen to.
    return ops.where(seen <= 0, ops.zeros_like(gradient), gradient)


def _passed_by_relu6(ops: Any, gradient: Any, seen: Any) -> Any:
    return ops.where(ops.logical_or(seen <= 0, seen >= 6), ops.zeros_like(gradient), gradient)


def _passed_by_silu(ops: Any, gradient: Any, seen: Any) -> Any:
    share = ops.sigmoid(seen)
    return gradient * (share * (1 + seen * (1 - share)))


def _passed_by_hard_swish(ops: Any, gradient: Any, seen: Any) -> Any:
    is_bent = ops.logical_not(ops.logical_or(seen <= -3, seen >= 3))
    return gradient * (ops.relu6(seen + 3) / 6 + ops.where(is_bent, seen / 6, ops.zeros_like(seen)))


ACTIVATIONS = {
    "linear": Activation("linear", lambda ops, gradient, seen: gradient),
    "relu": Activation("relu", _passed_where_positive),
    "relu6": Activation("relu6", _passed_by_relu6),
    "silu": Activation("silu", _passed_by_silu, reads_outputs=False),
    "hard_swish": Activation("hard_silu", _passed_by_hard_swish, reads_outputs=False),
}
NAMES = tuple(ACTIVATIONS)
"""By their numbers."""


def number(name: str) -> int:
    """Return an activation's `GwActivation`.

    Raises:
        ValueError: where there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}: must be one of {', '.join(ACTIVATIONS)}")
    return NAMES.index(name)
