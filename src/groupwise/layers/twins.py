"""Our layers under the names of Keras's: for places where a file holds what a class of somebody's own says.

Such a class makes its layers anew when it is loaded, and Keras looks for their weights under their classes' names. So
these are ours in memory, and a file holds Keras's own.
"""

import inspect
from typing import Any

import keras

from groupwise import backends
from groupwise.frameworks import FRAMEWORKS
from groupwise.layers.batch_norm import BatchNormalization
from groupwise.layers.stock import STOCK

OURS: dict[type, Any] = {stock: ours for ours, stock in STOCK.items()} | {
    keras.layers.BatchNormalization: BatchNormalization
}
"""Keras's layers and ours, which compute the same."""

_OF_OURS_ALONE = ("algorithm", "activation", "fused")


def _twin(stock: Any, ours: Any) -> Any:
    known = inspect.signature(stock.__init__).parameters

    def get_config(self: Any) -> dict[str, Any]:
        config: dict[str, Any] = ours.get_config(self)
        return {name: value for name, value in config.items() if name not in _OF_OURS_ALONE or name in known}

    return type(stock.__name__, (ours,), {"__module__": "keras.layers", "get_config": get_config})


TWINS: dict[type, Any] = {stock: _twin(stock, ours) for stock, ours in OURS.items()}
"""Keras's layers and ours under their names."""


def kinds_of(stock: type) -> tuple[type, ...]:
    """Return a class of Keras's, and ours that compute the same."""
    return (stock, OURS[stock], TWINS[stock])


def ours_for(kind: type) -> Any:
    """Return our class for one of Keras's, of ours or of the twins; None for any other."""
    return _OURS_OF_ANY.get(kind)


_OURS_OF_ANY: dict[type, Any] = {kind: OURS[stock] for stock in OURS for kind in kinds_of(stock)}


def is_stock(layer: Any) -> bool:
    """Return whether a layer is one of Keras's own that ours can stand for."""
    return type(layer) in OURS


def objection(layer: Any) -> str | None:
    """Return why a layer of Keras's must stay what it is, or None."""
    if getattr(layer, "lora_enabled", False):
        return "it has a LoRA adapter; merge it first"
    if getattr(layer, "quantization_mode", None):
        return f"it is quantized ({layer.quantization_mode})"
    is_mean = isinstance(layer, keras.layers.AveragePooling2D) and layer.padding == "same"
    if is_mean and backends.active.pool_same:
        where = f"on {FRAMEWORKS[keras.backend.backend()].title} Keras's own"
        return f"{where} repeats the edges of images of odd sizes, where ours leaves them out of the mean"
    return None


def described(layer: Any) -> str:
    """Return a layer's class, and its groups where it has several."""
    groups = getattr(layer, "groups", 1)
    return type(layer).__name__ + (f", {groups} groups" if groups > 1 else "")
