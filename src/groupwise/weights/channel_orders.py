"""ShuffleNet's conventions: the orders of channels in which one publisher's network computes what another's does.

An order is an array of indices: `new[i] = old[order[i]]`.

Version 1. Between a unit's first grouped 1x1 and its last, the channels are shuffled: by the paper and pytorchcv from
(groups, n) to (n, groups), by tensorpack and megvii the other way round; by megvii after the depthwise convolution.
The place is exchangeable, since a depthwise convolution works on each channel alone. The two shuffles are exchangeable
where as many channels go from each group of the first 1x1 to each group of the last one: then orders within the groups
make up the difference. That depends on n modulo the groups only: it holds for up to three groups always, for four
unless 2 is left over, for eight unless 2 to 6 are.

The order in which units of strides 2 join their pool and their branch is an argument of networks. Reversing every
channel axis of a whole network would exchange it too, but turn round the channels of all features.

Version 2. megvii's unit lets the even channels pass by; with the inverse shuffle at a unit's end, these are the first
half of the next one's. What comes after the last unit of a stage sees its channels shuffled by ours, and not by
megvii's: it reads them in another order.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Order: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Convention:
    """How a ShuffleNet v1 shuffles.

    Attributes:
        shuffle: "paper" or "inverse".
        after_depthwise: whether after the depthwise convolution, or before it.
    """

    shuffle: str
    after_depthwise: bool = False

    def sources(self, groups: int, channels: int) -> Order:
        """Return, for each place after the shuffle, the channel that it takes."""
        shape = (groups, channels // groups) if self.shuffle == "paper" else (channels // groups, groups)
        return np.arange(channels).reshape(shape).T.ravel()


CONVENTIONS = {
    "pytorchcv": Convention("paper"),
    "tensorpack": Convention("inverse"),
    "megvii": Convention("inverse", after_depthwise=True),
}
"""By publisher."""

POOL_FIRST = ("megvii", "tensorpack")
"""Who joins the pool and the branch in this order."""


class UnitOrders(NamedTuple):
    """The orders of a unit's channels that turn one convention into another.

    Attributes:
        compress: of the first 1x1's output channels; it keeps each within its group.
        depthwise: of the depthwise convolution's channels.
        expand: of the last 1x1's input channels; it keeps each within its group.
    """

    compress: Order
    depthwise: Order
    expand: Order


def exchange(groups: int, channels: int, source: Convention, target: Convention) -> UnitOrders | None:
    """Return the orders with which a unit of the target's convention computes what one of the source's does.

    Args:
        groups: of the unit. channels: between its 1x1 convolutions, a multiple of the groups.
        source: of the weights. target: of the network.

    Returns:
        None where there are none.

    Examples:
        >>> exchange(2, 8, Convention("inverse"), Convention("paper")).compress
        array([0, 2, 1, 3, 4, 6, 5, 7])
        >>> exchange(8, 96, Convention("inverse"), Convention("paper")) is None
        True
    """
    from_source, from_target = source.sources(groups, channels), target.sources(groups, channels)
    width = channels // groups
    compress, expand = np.empty(channels, np.int64), np.empty(channels, np.int64)
    block = np.arange(channels) // width
    for to in range(groups):
        for origin in range(groups):
            ours = np.flatnonzero((block == to) & (from_target // width == origin))
            theirs = np.flatnonzero((block == to) & (from_source // width == origin))
            if len(ours) != len(theirs):
                return None
            expand[ours] = theirs
            compress[from_target[ours]] = from_source[theirs]
    channel = compress if target.after_depthwise else compress[from_target]
    depthwise = channel if source.after_depthwise else np.argsort(from_source)[channel]
    return UnitOrders(compress, depthwise, expand)


def reordered_groups(kernel: NDArray[Any], order: Order, groups: int) -> NDArray[Any]:
    """Return a grouped kernel (height, width, channels / groups, filters) for input channels in another order.

    Args:
        kernel: of the convolution.
        order: of all its input channels, each within its group.
        groups: of the convolution.
    """
    width, filters = kernel.shape[2], kernel.shape[3] // groups
    pieces = []
    for group in range(groups):
        inside = order[group * width : (group + 1) * width] - group * width
        pieces.append(kernel[:, :, inside, group * filters : (group + 1) * filters])
    return np.concatenate(pieces, axis=-1)
