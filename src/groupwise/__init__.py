"""Fast grouped, depthwise and separable convolutions for Keras 3, and the networks made of them."""

import importlib
from typing import Any

_MEMBERS = {
    "export": "groupwise.export",
    "layers": "groupwise.layers",
    "models": "groupwise.models",
    "ops": "groupwise.ops",
    "rewrite": "groupwise.rewrite",
    "accelerate": "groupwise.rewrite:accelerate",
    "explain_routing": "groupwise.ops:explain_routing",
    "load_keras_weights": "groupwise.weights.keras_files:load_keras_weights",
}

__all__ = ["accelerate", "explain_routing", "export", "layers", "load_keras_weights", "models", "ops", "rewrite"]  # noqa: F822


def __getattr__(name: str) -> Any:
    """Import a public member at its first use: the command must settle Keras's backend before Keras is imported."""
    if name not in _MEMBERS:
        raise AttributeError(f"module 'groupwise' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, member = _MEMBERS[name].partition(":")
    value = importlib.import_module(module)
    return getattr(value, member) if member else value


def __dir__() -> list[str]:
    return sorted(__all__)
