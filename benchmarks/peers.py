"""How the peers' packages are imported beside a CPU build of PyTorch."""

import contextlib
from collections.abc import Iterator
from typing import Any


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
