"""JAX: what computes instead of the CPU."""

from functools import cache
from typing import Any

import jax

from groupwise.routing import Accelerator

_FIRST_WITH_BFLOAT16 = 8.0
"""NVIDIA's compute capability."""


def device_of(inputs: Any = None) -> Any:
    """Return the device that holds `inputs`, or the one where the next array or a traced computation goes."""
    if isinstance(inputs, jax.Array) and not isinstance(inputs, jax.core.Tracer):
        return next(iter(inputs.devices()))
    chosen = jax.config.jax_default_device
    return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


@cache
def accelerator(device: Any) -> Accelerator | None:
    """Return the accelerator that a device is, or None for a CPU."""
    if device.platform == "cpu":
        return None
    return Accelerator(device.device_kind, device.platform == "tpu" or _has_bfloat16(device))


def _has_bfloat16(device: Any) -> bool:
    try:
        return float(device.compute_capability) >= _FIRST_WITH_BFLOAT16
    except (AttributeError, ValueError):  # no card of NVIDIA's
        return False


def check_on_cpu(inputs: Any) -> None:
    """Raise ValueError where the core is asked to compute on an accelerator."""
    card = accelerator(device_of(inputs))
    if card is not None:
        raise ValueError(
            f"arrays on a {card.name}: the C core computes on CPUs; move them to the CPU, or choose another algorithm"
        )
