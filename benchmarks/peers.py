"""The peers: who else has our networks in PyTorch, and how their packages are imported beside a CPU build of it."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

PEERS = {
    "resnext50_32x4d": "timm",
    "shufflenet_g3_w1": "pytorchcv",
    "seresnext50_32x4d": "timm",
    "mobilenetv1_100": "timm",
    "groupnet_cifar10": "plain",
    "resnext20_16x4d_cifar10": "plain",
}
"""Network -> who has it under the same name; "plain" is `benchmarks/plain.py`."""


def create(library: str, network: str) -> Any:
    """Return a peer's network, a `torch.nn.Module` with fresh weights.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    if library == "plain":
        from benchmarks import plain
        from groupwise import models

        return plain.like(models.create(network))
    with without_compiled_operations():
        if library == "timm":
            return importlib.import_module("timm").create_model(network)
        return importlib.import_module("pytorchcv.model_provider").get_model(network)


@contextlib.contextmanager
def without_compiled_operations() -> Iterator[None]:
    """Let torchvision (and so timm) be imported beside a PyTorch that its compiled operations were not built for."""
    import torch

    register = torch.library.register_fake

    def tolerant(operation: Any, *args: Any, **kwargs: Any) -> Any:
        if str(operation).startswith("torchvision::"):
            return lambda function: function
        return register(operation, *args, **kwargs)

    torch.library.register_fake = tolerant
    try:
        yield
    finally:
        torch.library.register_fake = register
