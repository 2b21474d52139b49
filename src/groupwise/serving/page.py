"""The page for people: one file, which loads nothing from anywhere but the answers to its own requests."""

import base64
import hashlib
import html
import re
from pathlib import Path
from string import Template

from groupwise.texts import printable

_TEXT = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


class Page:
    """The page on a network.

    Attributes:
        text: its HTML.
        policy: what browsers let it do: run its own script in its own style, and ask this server.

    Args:
        name: the network's.
        classes: how many it tells apart.
        size: (height, width) of its images, in pixels.
        explains: whether it can say where it looked.
        most_bytes: that an image may have.

    Examples:
        >>> page = Page("mnist_cnn", classes=10, size=(28, 28), explains=True, most_bytes=1000)
        >>> "10 classes" in page.text, page.policy.split(";")[0]
        (True, "default-src 'none'")
    """

    def __init__(self, name: str, classes: int, size: tuple[int, int], explains: bool, most_bytes: int) -> None:
        height, width = size
        self.text = _TEXT.substitute(
            name=html.escape(printable(name)),
            classes=f"{classes:,}",
            size=f"{width} × {height}",
            explains=str(explains).lower(),
            most_bytes=most_bytes,
        )
        script, style = (_hash(self.text, tag) for tag in ("script", "style"))
        self.policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src {script}",
                f"style-src {style}",
                "img-src 'self' blob: data:",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )


def _hash(text: str, tag: str) -> str:
    """Return the name that a policy has for what stands in a tag, of which the page has one."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
