"""Networks for other runtimes: ONNX, SavedModel, LiteRT and OpenVINO files, checked in the runtime they are for.

Importing this package imports no framework; `export_model` does.
"""

from typing import TYPE_CHECKING, Any

from groupwise.export.formats import FORMATS

if TYPE_CHECKING:
    from groupwise.export.exporting import Exported, export_model

__all__ = ["FORMATS", "Exported", "export_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from groupwise.export import exporting

        return getattr(exporting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
