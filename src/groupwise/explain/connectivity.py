"""Which input channels reach which output channels: found by running the operations, one channel at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.ops import channel_shuffle, grouped_conv2d

Apply = Callable[[Any], Any]


def reach(apply: Apply, channels: int) -> NDArray[np.bool_]:
    """Return, as (outputs, inputs), which input channels an operation carries to which output channels.

    Args:
        apply: from (batch, 1, 1, channels) to (batch, 1, 1, outputs), its weights positive, so that nothing cancels.
        channels: of its input.

    Examples:
        >>> reach(summing(4, groups=2), 4).astype(int).tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    inputs = np.eye(channels, dtype="float32").reshape(channels, 1, 1, channels)
    outputs = keras.ops.convert_to_numpy(apply(keras.ops.convert_to_tensor(inputs)))
    found: NDArray[np.bool_] = outputs.reshape(channels, -1).T != 0
    return found


def summing(channels: int, groups: int) -> Apply:
    """Return a 1x1 grouped convolution, from channels to as many, whose weights are all 1."""
    kernel = np.ones((1, 1, channels // groups, channels), "float32")
    return lambda x: grouped_conv2d(x, kernel, groups, data_format="channels_last")


def shuffling(groups: int) -> Apply:
    """Return the channel shuffle."""
    return lambda x: channel_shuffle(x, groups, data_format="channels_last")


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of a stack.

    Attributes:
        name: "input", "convolution 1", "shuffle 1", ...
        alone: (outputs, inputs), which of its own input channels it carries where.
        reached: (outputs, inputs), which of the whole stack's input channels have come so far.
    """

    name: str
    alone: NDArray[np.bool_]
    reached: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """How many of all pairs of channels are connected."""
        return float(self.reached.mean())


def stack(channels: int, groups: int, depth: int, shuffle: bool) -> list[Step]:
    """Return the steps of `depth` grouped convolutions, with or without a shuffle between one and the next.

    Examples:
        >>> [round(step.share, 2) for step in stack(12, 3, depth=2, shuffle=True)]
        [0.08, 0.33, 0.33, 1.0]
    """
    operations: list[tuple[str, Apply]] = [("input", lambda x: x)]
    for number in range(1, depth + 1):
        operations.append((f"convolution {number}", summing(channels, groups)))
        if shuffle and number < depth:
            operations.append((f"shuffle {number}", shuffling(groups)))
    steps = []
    for count, (name, operation) in enumerate(operations, start=1):
        steps.append(Step(name, reach(operation, channels), reach(_chain(operations[:count]), channels)))
    return steps


def convolutions_to_mix(channels: int, groups: int, limit: int = 6) -> int | None:
    """Return after how many grouped convolutions, shuffled in between, every output sees every input; None: never.

    Examples:
        >>> convolutions_to_mix(12, 3), convolutions_to_mix(16, 8)
        (2, 4)
    """
    for step in stack(channels, groups, limit, shuffle=True):
        if step.reached.all():
            return int(step.name.split()[-1]) if step.name != "input" else 0
    return None


def by_group(reached: NDArray[np.bool_], groups: int) -> NDArray[np.bool_]:
    """Return (outputs, groups): from which groups of input channels anything has come."""
    outputs, channels = reached.shape
    result: NDArray[np.bool_] = np.any(reached.reshape(outputs, groups, channels // groups), axis=-1)
    return result


def _chain(operations: list[tuple[str, Apply]]) -> Apply:
    def apply(x: Any) -> Any:
        for _, operation in operations:
            x = operation(x)
        return x

    return apply
