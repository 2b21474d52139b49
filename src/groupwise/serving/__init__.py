"""A network that answers on HTTP: a page to drop images on, and the same as JSON for programs.

Importing this package needs the extra `serve` and imports no framework; its members do.
"""

from typing import TYPE_CHECKING

from groupwise.errors import check_installed
from groupwise.lazy import members_at_use

for _package in ("fastapi", "uvicorn", "python_multipart"):
    check_installed(_package, "serving", "serve")

if TYPE_CHECKING:
    from groupwise.serving.app import Limits, make_app
    from groupwise.serving.server import address_of, open_listener, run
else:
    __getattr__, __dir__ = members_at_use(
        __name__,
        {
            "Limits": "app",
            "address_of": "server",
            "make_app": "app",
            "open_listener": "server",
            "run": "server",
        },
    )

__all__ = ["Limits", "address_of", "make_app", "open_listener", "run"]
