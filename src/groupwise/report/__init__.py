"""Pictures of a training and of its result, as PNG files."""

from groupwise.report.confusion import confusion
from groupwise.report.curves import curves

__all__ = ["confusion", "curves"]
