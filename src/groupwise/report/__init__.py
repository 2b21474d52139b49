"""Pictures of a training, of its result, and of where a network looked, as PNG files."""

from groupwise.report.activation import activation
from groupwise.report.confusion import confusion
from groupwise.report.curves import curves

__all__ = ["activation", "confusion", "curves"]
