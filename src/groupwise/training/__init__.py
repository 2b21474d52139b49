"""Training. Importing this package imports no framework; its members do."""

import importlib
from typing import Any

_MEMBERS = {
    "Plan": "plan",
    "RunSummary": "fit",
    "extend_plan": "plan",
    "make_plan": "plan",
    "read_plan": "fit",
    "train": "fit",
}

__all__ = [  # noqa: F822
    "Plan",
    "RunSummary",
    "extend_plan",
    "make_plan",
    "read_plan",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MEMBERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MEMBERS[name]}"), name)
