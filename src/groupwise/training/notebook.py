"""An observer that shows a training below a notebook's cell. Importing this imports neither a framework nor IPython."""

import sys
import time
from html import escape
from typing import Any

from groupwise.errors import check_installed
from groupwise.texts import html_table, printable
from groupwise.training.events import (
    EndedEarly,
    EpochEnded,
    Event,
    Finished,
    FitBegun,
    FitEnded,
    StepDone,
)

INTERVAL = 0.5  # seconds between two updates of the bar


class NotebookObserver:
    """Shows a training below a notebook's cell: what is trained on what, a bar that moves, and a row for each epoch.

    Raises:
        UserError: IPython, which every notebook has, is not installed.

    Examples:
        >>> observer = NotebookObserver()  # doctest: +SKIP
    """

    def __init__(self) -> None:
        check_installed("IPython", "showing a training in a notebook", "notebook")
        self._lines: list[str] = []
        self._rows: list[list[str]] = []
        self._last: list[str] = []
        self._columns = ["epoch"]
        self._bar = ""
        self._fit: FitBegun | None = None
        self._moved = 0.0
        self._handle: Any = None

    def __call__(self, event: Event) -> None:
        match event:
            case FitBegun():
                self._fit = event
                self._bar = _bar(event.finished * event.steps + event.first, event.epochs * event.steps, "")
            case StepDone() if self._fit is not None:
                if time.monotonic() - self._moved < INTERVAL:
                    return
                self._moved = time.monotonic()
                done = (event.epoch - 1) * self._fit.steps + event.step
                speed = event.images / max(event.seconds, 1e-9)
                status = f"epoch {event.epoch}/{self._fit.epochs}, {speed:,.0f} images/s, loss {event.loss:.3f}"
                self._bar = _bar(done, self._fit.epochs * self._fit.steps, status)
            case EpochEnded():
                self._add_row(event)
            case FitEnded():
                self._bar = ""
            case EndedEarly() | Finished():
                self._last = event.lines()
            case _:
                shown = event.lines()
                if not shown:
                    return
                self._lines += shown
        self._show()

    def _add_row(self, event: EpochEnded) -> None:
        judge, numbers = event.judged_by, event.numbers
        self._columns = ["epoch", "accuracy", "loss", f"{judge} accuracy", f"{judge} loss", "images/s"]
        self._rows.append(
            [
                f"{event.epoch}/{event.epochs}",
                f"{numbers['accuracy']:.2%}",
                f"{numbers['loss']:.4f}",
                f"{numbers[f'{judge}_accuracy']:.2%}",
                f"{numbers[f'{judge}_loss']:.4f}",
                f"{numbers['images_per_second']:,.0f}",
            ]
        )

    def _show(self) -> None:
        from IPython.display import HTML, display

        table = html_table(self._columns, self._rows) if self._rows else ""
        page = HTML(_text(self._lines) + table + self._bar + _text(self._last))
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)


def is_notebook() -> bool:
    """Return whether this runs in a notebook's kernel, which shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _text(lines: list[str]) -> str:
    text = escape("\n".join(map(printable, lines)))
    return f'<pre style="font-family:monospace">{text}</pre>' if lines else ""


def _bar(done: int, total: int, status: str) -> str:
    return f'<progress value="{done}" max="{total}" style="width:16em"></progress> {escape(status)}'
