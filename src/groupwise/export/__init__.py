"""Networks for other runtimes: ONNX, SavedModel, LiteRT and OpenVINO files, checked in the runtime they are for.

Importing this package imports no framework; `export_model` does.
"""

from typing import TYPE_CHECKING

from groupwise.export.formats import FORMATS
from groupwise.lazy import members_at_use

if TYPE_CHECKING:
    from groupwise.export.exporting import Exported, export_model
else:
    __getattr__, __dir__ = members_at_use(__name__, {"Exported": "exporting", "export_model": "exporting"})

__all__ = ["FORMATS", "Exported", "export_model"]
