"""Which values change on their way from a publisher's network into ours, for each slot that does."""

from collections.abc import Iterable

from groupwise.weights.slots import Array, Edit, Slot

BGR = Edit(lambda kernel: kernel[:, :, ::-1, :])
"""The stem's kernel of a network that was trained on blue, green and red, in this order."""


def edits_of(publisher: str, slots: Iterable[Slot]) -> dict[str, Edit]:
    """Return the edits by slot.

    Args:
        publisher: whose network the file holds.
        slots: of the network that takes the values.
    """
    if publisher == "keras.applications":
        return {
            slot.name: grouped_from_depthwise(tuple(slot.variable.shape))
            for slot in slots
            if slot.layer.endswith("_spatial_conv")
        }
    return {"stem_conv.weight": BGR} if publisher in ("megvii", "tensorpack") else {}


def grouped_from_depthwise(shape: tuple[int, ...]) -> Edit:
    """Return the edit that makes a grouped kernel of keras.applications' depthwise one, whose results are then summed.

    With c channels a group, the depthwise kernel has c filters for every channel: filter j of channel g * c + k holds
    what input k of its group adds to output g * c + j, so that grouped[:, :, k, g * c + j] is it.

    Args:
        shape: (height, width, c, channels) of the grouped kernel, which has as many outputs as inputs.

    Examples:
        >>> grouped_from_depthwise((3, 3, 4, 128)).stored_shape
        (3, 3, 128, 4)
    """
    height, width, inputs, channels = shape
    groups = channels // inputs

    def change(kernel: Array) -> Array:
        split = kernel.reshape(height, width, groups, inputs, inputs)
        return split.transpose(0, 1, 3, 2, 4).reshape(shape)

    return Edit(change, (height, width, channels, inputs))
