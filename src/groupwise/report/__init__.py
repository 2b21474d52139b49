"""A training, its images and its result as PNG files, and all that is known of runs as pages.

Importing this package imports no framework; what looks at a network does.
"""

from typing import TYPE_CHECKING

from groupwise.errors import check_installed
from groupwise.lazy import members_at_use

check_installed("matplotlib", "drawing")

from groupwise.report.batch import batch  # noqa: E402
from groupwise.report.confusion import confusion  # noqa: E402
from groupwise.report.curves import curves  # noqa: E402
from groupwise.report.heat_map import heat_map, overlay  # noqa: E402

if TYPE_CHECKING:
    from groupwise.report.looking import look
    from groupwise.report.reporting import write_page, write_reports
else:
    __getattr__, __dir__ = members_at_use(
        __name__, {"look": "looking", "write_page": "reporting", "write_reports": "reporting"}
    )

__all__ = ["batch", "confusion", "curves", "heat_map", "look", "overlay", "write_page", "write_reports"]
