"""Numbers as a page writes them, and tables that can be put in another order."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from groupwise.report.html_page import literal


class Cell(NamedTuple):
    """A cell of a table: what it is ordered by, and what it shows, as HTML."""

    value: float | str
    shown: str


def share(value: float, digits: int = 1) -> Cell:
    """Return a share as a percentage with a bar; of nothing, a dash, which is ordered as less than all."""
    if math.isnan(value):
        return Cell(-1, "–")
    return Cell(value, f'{value:.{digits}%}<span class="share"><i style="width:{100 * value:.1f}%"></i></span>')


def count(value: int) -> Cell:
    """Return a count with commas."""
    return Cell(value, f"{value:,}")


def text(value: str) -> Cell:
    """Return somebody's text."""
    return Cell(literal(value), literal(value))


def sortable(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], by: int = 0, falls: bool = False
) -> str:
    """Return a table whose rows a click on a column's head puts in the column's order.

    Args:
        caption: what it is, for who does not see it.
        head: the columns' names, the first one's cells heads of their rows.
        rows: in their first order, one at least.
        by: the column that they are in the order of; -1 for none.
        falls: whether the largest of it comes first.
    """
    kinds = [' class="text"' if place and isinstance(cell.value, str) else "" for place, cell in enumerate(rows[0])]
    order = f' aria-sort="{"descending" if falls else "ascending"}"'
    sorted_by = [order if place == by else "" for place in range(len(head))]
    columns = "".join(
        f'<th scope="col"{kind}{mark}><button type="button">{name}</button></th>'
        for name, kind, mark in zip(head, kinds, sorted_by, strict=True)
    )
    lines = []
    for first, *rest in rows:
        cells = "".join(
            f'<td{kind} data-value="{cell.value}">{cell.shown}</td>' for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row" data-value="{first.value}">{first.shown}</th>{cells}</tr>\n')
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">\n'
        f'<table class="sortable" aria-label="{caption}">\n<thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table>\n</div>"
    )


def duration(value: float) -> str:
    """Return seconds as a reader counts them.

    Examples:
        >>> duration(7.25), duration(95), duration(7260)
        ('7.2 s', '1 min 35 s', '2 h 1 min')
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(value: float) -> str:
    """Return bytes as a reader counts them.

    Examples:
        >>> size(734_003_200), size(3_650_722_201)
        ('700 MB', '3.4 GB')
    """
    megabytes = value / 2**20
    return f"{megabytes:,.0f} MB" if megabytes < 1000 else f"{megabytes / 1024:,.1f} GB"


def large(value: float) -> str:
    """Return a large count in thousands, millions or milliards.

    Examples:
        >>> large(950), large(1_090_000), large(4_260_000_000)
        ('950', '1.09 M', '4.26 G')
    """
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {letter}"
    return f"{value:g}"
