"""TensorFlow: what computes instead of the CPU."""

from functools import cache

import tensorflow as tf

from groupwise.routing import Accelerator

_FIRST_WITH_BFLOAT16 = (8, 0)
"""NVIDIA's compute capability."""


@cache
def accelerator() -> Accelerator | None:
    """Return the first accelerator that TensorFlow sees, and which it prefers to the CPU, or None."""
    kinds = [device.device_type for device in tf.config.list_logical_devices() if device.device_type != "CPU"]
    if not kinds:
        return None
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices(kinds[0])[0])
    capability = details.get("compute_capability", (0, 0))
    return Accelerator(details.get("device_name", kinds[0]), kinds[0] == "TPU" or capability >= _FIRST_WITH_BFLOAT16)


def check_on_cpu() -> None:
    """Raise ValueError where the core is asked to compute though TensorFlow computes on an accelerator."""
    card = accelerator()
    if card is not None:
        raise ValueError(
            f"arrays on a {card.name}: the C core computes on CPUs; hide the card by "
            'tf.config.set_visible_devices([], "GPU"), or choose another algorithm'
        )
