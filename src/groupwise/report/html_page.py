"""What pages share: plain HTML in one file, readable on a phone and without a network."""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from groupwise.texts import printable

_FRAME = Template((Path(__file__).parent / "frame.html").read_text(encoding="utf-8"))


def framed(title: str, body: str, source: str, head: str = "", script: str = "") -> str:
    """Return a whole page.

    Args:
        title, body: as HTML.
        source: the line below, as HTML: how the page was made.
        head: what its head has besides: styles.
        script: the element of its script.
    """
    return _FRAME.substitute(title=title, body=body, source=source, head=head, script=script)


def literal(text: str) -> str:
    """Return somebody's text for a page: what would be a mark in it is none.

    Examples:
        >>> literal("<b>.keras")
        '&lt;b&gt;.keras'
    """
    return html.escape(printable(text))


def breakable(text: str) -> str:
    """Return somebody's name or path for a page: where it is too long for its line, it is parted at its joints.

    Examples:
        >>> breakable("test/crop_padding")
        'test/<wbr>crop_<wbr>padding'
    """
    return re.sub("([/_.])(?=[^/_.])", r"\1<wbr>", literal(text))


def shown(value: object) -> str:
    """Return a shape, a count or a tiny difference as a page shows it, and a text as it is.

    Examples:
        >>> shown((3, 3, 4, 128)), shown(4608), shown(2.4e-07), shown(0.0)
        ('3x3x4x128', '4,608', '2.4e-07', '0')
    """
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.1e}" if value else "0"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table's HTML; wider than a phone it scrolls in its own box. Columns after the first are numbers."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{shown(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>\n')
    # A box that scrolls must be reachable by keyboard, and then it needs a name.
    label = re.sub("<.*?>", "", caption)
    return (
        f'<p class="caption">{caption}</p>\n'
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n<table aria-label="{label}">\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table>\n</div>"
    )
