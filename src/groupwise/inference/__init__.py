"""Using a network without training it: preprocessing, prediction, evaluation, and where it looked.

Importing this package imports no framework; its members do.
"""

import importlib
from typing import Any

_MEMBERS = {
    "Evaluation": "evaluation",
    "Explainer": "saliency",
    "Prediction": "prediction",
    "evaluate": "evaluation",
    "load_network": "networks",
    "predict_images": "prediction",
}

__all__ = ["Evaluation", "Explainer", "Prediction", "evaluate", "load_network", "predict_images"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name not in _MEMBERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MEMBERS[name]}"), name)
