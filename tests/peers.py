"""What a parity test needs of the peers: their packages, and random weights."""

from collections.abc import Collection, Iterable
from types import ModuleType
from typing import Any

import keras
import pytest

from benchmarks.peers import without_compiled_operations


def slow_unless(quick: Collection[str], names: Iterable[str]) -> list[Any]:
    """Return parameters for `pytest.mark.parametrize`: every name, those that are not quick marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def import_peer(name: str) -> ModuleType:
    """Return the module `name` of timm, torchvision or pytorchcv, or skip the test that asked for it."""
    if keras.backend.backend() != "torch":
        pytest.skip("parity with PyTorch's networks is tested on the torch backend")
    with without_compiled_operations():
        return pytest.importorskip(name, reason=f"parity with {name}, which is not installed", exc_type=ImportError)


def randomise(peer: Any, seed: int = 0) -> Any:
    """Give a PyTorch network random weights and batch norm statistics, ready for inference, and return it."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Any, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in peer.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.3, 0.3)
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
            elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                bound = (6 / module.weight[0].numel()) ** 0.5
                uniform(module.weight, -bound, bound)
                if module.bias is not None:
                    uniform(module.bias, -0.3, 0.3)
    return peer.eval()
