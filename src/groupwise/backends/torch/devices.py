"""PyTorch: what computes instead of the CPU."""

from functools import cache
from typing import Any

import torch

from groupwise.routing import Accelerator


def accelerator(device: torch.device) -> Accelerator | None:
    """Return the accelerator that a device of another type than "cpu" is; None for "meta", which has no memory."""
    return None if device.type == "meta" else _card(str(device))


@torch.compiler.assume_constant_result
@cache
def _card(device: str) -> Accelerator:
    if not device.startswith("cuda"):
        return Accelerator(device)
    # By itself it counts a card that emulates it, too.
    return Accelerator(torch.cuda.get_device_name(device), torch.cuda.is_bf16_supported(including_emulation=False))


def refuse(*arguments: Any) -> Any:
    """Stand for the core's operations on a GPU: raise ValueError."""
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    raise ValueError(
        f"arrays on {device}: the C core computes on CPUs; move them to the CPU, or choose another algorithm"
    )


def random_state() -> Any:
    """Return the state of PyTorch's random numbers, for `set_random_state`; a card's only where one is in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def set_random_state(state: Any) -> None:
    """Let PyTorch draw from here on as it did from there on."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
