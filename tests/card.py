"""The suite as on a GPU, as far as a CPU can play it: `pytest -p tests.card`.

The core runs nowhere, and PyTorch's tensors become arrays through Keras alone, which copies them from the card.
"""

import importlib
import sys
from typing import Any

from groupwise import backends
from groupwise.routing import Accelerator, Runtime

_RUNTIME = Runtime(backends.active.runtime().framework, "gpu", accelerator=Accelerator("a card that is played"))

backends.active.runtime = lambda inputs=None: _RUNTIME  # type: ignore[method-assign]


def _as_on_a_card(to_array: Any) -> Any:
    def array(tensor: Any, *arguments: Any, **options: Any) -> Any:
        frame: Any = sys._getframe(1)
        while frame is not None and not frame.f_globals.get("__name__", "").startswith(("keras.", "torch.")):
            frame = frame.f_back
        if frame is None:
            raise TypeError("can't convert a tensor on a card to an array: take keras.ops.convert_to_numpy")
        return to_array(tensor, *arguments, **options)

    return array


if _RUNTIME.framework == "torch":
    torch: Any = importlib.import_module("torch")
    torch.Tensor.__array__ = _as_on_a_card(torch.Tensor.__array__)
