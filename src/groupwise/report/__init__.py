"""Pictures of a training, of its images and its result, and of where a network looked, as PNG files."""

from groupwise.errors import check_installed

check_installed("matplotlib", "drawing")

from groupwise.report.batch import batch  # noqa: E402
from groupwise.report.confusion import confusion  # noqa: E402
from groupwise.report.curves import curves  # noqa: E402
from groupwise.report.heat_map import heat_map, overlay  # noqa: E402

__all__ = ["batch", "confusion", "curves", "heat_map", "overlay"]
