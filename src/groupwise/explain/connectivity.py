"""Which input channels reach which output channels: found by running the operations, one channel at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    return _reached(apply(_one_by_one(channels)))


def _one_by_one(channels: int) -> Any:
    return keras.ops.reshape(keras.ops.eye(channels, dtype="float32"), (channels, 1, 1, channels))


def _reached(outputs: Any) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = keras.ops.convert_to_numpy(outputs)[:, 0, 0].T != 0
    return found


def summing(channels: int, groups: int) -> Apply:
    """Return a 1x1 grouped convolution, from channels to as many, whose weights are all 1."""
    kernel = np.ones((1, 1, channels // groups, channels), "float32")
    return lambda x: grouped_conv2d(x, kernel, groups, data_format="channels_last")


def shuffling(groups: int) -> Apply:
    """Return the channel shuffle."""
    return lambda x: channel_shuffle(x, groups, data_format="channels_last")


class Step(NamedTuple):
    """One operation of a stack, "input", "convolution 1", "shuffle 1" or the like, as two (outputs, inputs).

    `alone`: which of its own input channels it carries where; `reached`: which of the stack's have come so far.
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
    operations: dict[str, Apply] = {"input": lambda x: x}
    for number in range(1, depth + 1):
        operations[f"convolution {number}"] = summing(channels, groups)
        if shuffle and number < depth:
            operations[f"shuffle {number}"] = shuffling(groups)
    steps, x = [], _one_by_one(channels)
    for name, operation in operations.items():
        x = operation(x)
        steps.append(Step(name, reach(operation, channels), _reached(x)))
    return steps


def convolutions_to_mix(channels: int, groups: int) -> int | None:
    """Return after how many grouped convolutions, shuffled in between, each output sees each input; None: over six.

    Examples:
        >>> convolutions_to_mix(12, 3), convolutions_to_mix(16, 8)
        (2, 4)
    """
    steps = stack(channels, groups, depth=6, shuffle=True)
    return next((int(step.name.split()[-1]) for step in steps[1:] if step.reached.all()), None)


def by_group(reached: NDArray[np.bool_], groups: int) -> NDArray[np.bool_]:
    """Return (outputs, groups): from which groups of input channels anything has come."""
    result: NDArray[np.bool_] = np.any(reached.reshape(len(reached), groups, -1), axis=-1)
    return result
