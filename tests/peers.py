"""What a parity test needs: the peers' own models, random weights, and how those become ours."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest

from benchmarks.peers import without_compiled_operations
from groupwise import layers

Renames = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Regular expressions and replacements, applied in order: from a peer's module names to our layers' names."""


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


def copy_weights(peer: Any, model: keras.Model, renames: Renames) -> None:
    """Copy every weight of a PyTorch network into ours.

    A layer of two steps takes those of two modules, renamed to its own name and the step's: `.depthwise` and
    `.pointwise` of a separable layer, `.reduce` and `.expand` of squeeze-and-excitation.
    """
    modules = {_rename(name, renames): module for name, module in peer.named_modules() if _has_own_weights(module)}
    for layer in model.layers:
        if not layer.weights:
            continue
        if isinstance(layer, layers.SeparableConv2D):
            steps = [modules.pop(f"{layer.name}.{step}") for step in ("depthwise", "pointwise")]
            layer.set_weights([_array(steps[0]).transpose(2, 3, 0, 1), _array(steps[1]).transpose(2, 3, 1, 0)])
        elif isinstance(layer, layers.SqueezeExcite):
            for step in (layer.reduce, layer.expand):
                module = modules.pop(f"{layer.name}.{step.name}")
                step.set_weights([_array(module).reshape(step.kernel.shape[::-1]).T, module.bias.detach().numpy()])
        else:
            layer.set_weights(_converted(modules.pop(layer.name), layer))
    assert not modules, f"not copied: {sorted(modules)}"


def relative_difference(peer: Any, model: keras.Model, size: int, channels: int = 3) -> float:
    """Return the largest difference between the two networks' logits on random images, by the largest logit."""
    import torch

    images = np.random.default_rng(size).normal(size=(2, size, size, channels)).astype("float32")
    with torch.no_grad():
        expected = peer(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    assert np.abs(expected).max() > 1e-3
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


def _rename(name: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _has_own_weights(module: Any) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _array(module: Any) -> Any:
    return module.weight.detach().numpy()


def _converted(module: Any, layer: keras.layers.Layer) -> list[Any]:
    weight = _array(module)
    bias = [] if module.bias is None else [module.bias.detach().numpy()]
    if isinstance(layer, keras.layers.BatchNormalization):
        return [weight, *bias, module.running_mean.numpy(), module.running_var.numpy()]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return [weight.transpose(2, 3, 0, 1), *bias]
    return [weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, *bias]
