"""The result files: Markdown, in which one run replaces its own section or rows and leaves the others."""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

Row = dict[str, str]  # a table's row: column -> cell


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table; all rows have the first one's columns."""
    columns = list(rows[0])
    return [line(columns), "|---" * len(columns) + "|", *(line([row[name] for name in columns]) for row in rows)]


def line(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def read_tables(text: str) -> list[list[Row]]:
    """Return the tables of a Markdown text, in order.

    Raises:
        ValueError: a row has more or fewer cells than its table's head.
    """
    tables = []
    for is_table, group in groupby(text.splitlines(), lambda row: row.startswith("|")):
        if not is_table:
            continue
        columns, _, *rows = ([cell.strip() for cell in row.strip().strip("|").split("|")] for row in group)
        for cells in rows:
            if len(cells) != len(columns):
                raise ValueError(f"row {cells}: has {len(cells)} cells; its table has the {len(columns)} {columns}")
        tables.append([dict(zip(columns, cells, strict=True)) for cells in rows])
    return tables


def read_sections(text: str) -> dict[str, str]:
    """Return the text below every second-level heading; below "", what stands before the first."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    return {"": parts[0].strip(), **{title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}}


def write_section(path: Path, title: str, lines: Sequence[str]) -> None:
    """Write `lines` below the heading `title`, in place of what a file has there; its other sections stay."""
    sections = read_sections(path.read_text() if path.exists() else "")
    sections[title] = "\n".join(lines)
    parts = [f"## {name}\n\n{body}" if name else body for name, body in sections.items()]
    path.write_text("\n\n".join(filter(None, parts)) + "\n")


def merge_rows(path: Path, environment: str, rows: Sequence[Row], key: Sequence[str]) -> None:
    """Write rows into a file's one table, in place of those whose `key` columns are equal; its other rows stay.

    Every row's column "commit" names the environment in which it was measured, one of the lines above the table. Lines
    that no row names any longer are left out. What only other rows have a column for stays empty.

    Args:
        environment: a line of `timing.environment`; its commit is the column's.
    """
    text = path.read_text() if path.exists() else ""
    commit = environment.split(",")[0].removeprefix("commit ")
    merged = {tuple(row[name] for name in key): row for row in (read_tables(text) or [[]])[0]}
    merged |= {tuple(row[name] for name in key): {**row, "commit": commit} for row in rows}
    named = {row["commit"] for row in merged.values()}
    before = [old for old in text.splitlines() if old.startswith("commit ") and old != environment]
    lines = [old for old in before if old.split(",")[0].removeprefix("commit ") in named - {commit}]
    columns = [*dict.fromkeys(name for row in (*rows, *merged.values()) for name in row if name != "commit"), "commit"]
    complete = [{name: row.get(name, "") for name in columns} for row in merged.values()]
    path.write_text("\n\n".join([*lines, environment, "\n".join(table(complete))]) + "\n")
