"""Printing: a text is a text. No name of a file or a class is taken for markup, cut off, or acts on the terminal."""

import codecs
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from groupwise.texts import json_text, printable

__all__ = ["Console", "Listing", "Styled", "make_console", "note", "print_json", "print_lines", "say"]

UNLIMITED = 100_000  # columns, where no one looks at a terminal
NARROWEST = 10  # characters that a table's column keeps on a narrow terminal


class _PlainConsole(Console):
    """A console without markup, emoji codes and highlighting; styles are given beside a text: Styled(text, "bold")."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        options.update(markup=False, emoji=False, highlight=False)
        return super().render_str(printable(text, self.encoding), **options)

    def status(self, status: Any, **options: Any) -> Any:
        # A spinner takes markup, whatever its console does.
        return super().status(self.render_str(status) if isinstance(status, str) else status, **options)

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls this while it handles the error, and would end the process


class Listing(Table):
    """A table of texts, of which nothing is cut off.

    It is folded to a terminal's width; where that is too narrow, or no one looks at a terminal, its lines stay whole.
    """

    def __init__(self, *headers: str, **options: Any) -> None:
        super().__init__(*headers, box=None, header_style="bold", **options)

    def add_column(self, header: Any = "", footer: Any = "", **options: Any) -> None:
        super().add_column(header, footer, **{"overflow": "fold", **options})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update(width=UNLIMITED)
        _, right, _, left = self.padding
        whole = folded = 0
        for column in self.columns:
            cells = (column.header, column.footer, *column.cells)
            width = max(Measurement.get(console, unlimited, cell).maximum for cell in cells)
            whole += width + left + right
            folded += min(width, NARROWEST) + left + right
        if not console.is_terminal or folded > options.max_width:
            options = options.update(width=max(options.max_width, whole))
        return super().__rich_console__(console, options)


_silent = False


def be_silent() -> None:
    """Print nothing from here on: of several processes the first one speaks for all."""
    global _silent
    _silent = True


def make_console(stderr: bool = False, **options: Any) -> Console:
    """Return a console on which a text is a text, on standard output or standard error; options are rich's."""
    return _PlainConsole(stderr=stderr, quiet=_silent, **options)


def say(console: Console, text: str) -> None:
    """Print a text as one line that is not wrapped, on any console."""
    console.print(Text(printable(text, console.encoding)), soft_wrap=True)


def print_lines(console: Console, lines: Mapping[str, str]) -> None:
    """Print a line for each name and text, the texts one below the other."""
    for name, text in lines.items():
        line = Text.assemble((f"{name:<9}", "bold"), printable(text, console.encoding))
        console.print(line, soft_wrap=True)


def note(text: str) -> None:
    """Print what a user should know on standard error, where no program looks for a result."""
    if sys.stderr is not None and not _silent:
        print(printable(f"groupwise: {text}", sys.stderr.encoding), file=sys.stderr)


def print_json(content: Any) -> None:
    """Print data as JSON, in UTF-8 or, where standard output is of another encoding, in ASCII, which is UTF-8 too."""
    if sys.stdout is None:  # closed by whoever started the process
        return
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    sys.stdout.write(json_text(content, ascii_only=not encoding.startswith("utf-8")))
