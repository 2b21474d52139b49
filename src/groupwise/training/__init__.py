"""Training, evaluating and predicting. Importing this package imports no framework; its members do."""

import importlib
from typing import Any

_MEMBERS = {
    "Evaluation": "evaluation",
    "Plan": "plan",
    "RunSummary": "fit",
    "evaluate": "evaluation",
    "extend_plan": "plan",
    "load_network": "saved",
    "make_plan": "plan",
    "predict_images": "saved",
    "read_plan": "fit",
    "train": "fit",
}

__all__ = [  # noqa: F822
    "Evaluation",
    "Plan",
    "RunSummary",
    "evaluate",
    "extend_plan",
    "load_network",
    "make_plan",
    "predict_images",
    "read_plan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MEMBERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MEMBERS[name]}"), name)
