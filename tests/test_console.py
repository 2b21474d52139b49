"""Names of others on any console, in JSON and in pictures: shown as they are, never acting, never lost."""

import ast
import io
import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import groupwise
from groupwise import report
from groupwise.cli.console import Console, Listing, Styled, make_console, print_json, print_lines, say
from groupwise.report.style import of_others
from groupwise.texts import json_text, printable

pytestmark = pytest.mark.once
NAMES = {
    "cat [tabby]": "cat [tabby]",
    "dog [/b] [bold red]": "dog [/b] [bold red]",
    "owl :smile: \\[x]": "owl :smile: \\[x]",
    "[link=https://example.org]a[/link]": "[link=https://example.org]a[/link]",
    "red \x1b[31m\x1b]0;title\x07": r"red \x1b[31m\x1b]0;title\x07",
    "two\nlines\r\ttab": r"two\nlines\r\ttab",
    "C1 \x9b31m\x85": r"C1 \x9b31m\x85",
    "turned \u202egnp.exe": r"turned \u202egnp.exe",
    "latin-1 caf\udce9": r"latin-1 caf\xe9",
    "utf-8 k\udcc3\udca4se": "utf-8 käse",
    "half \ud83d": r"half \ud83d",
    "猫 שלום 👩‍👧 é": "猫 שלום 👩‍👧 é",
}


def _terminal(width: int, encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding, newline="", write_through=True)
    return make_console(file=file, width=width, force_terminal=True, color_system=None), written


@pytest.mark.parametrize(("name", "shown"), NAMES.items())
def test_a_name_is_shown_as_it_is(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert printable(shown) == shown
    console, written = _terminal(200)
    table = Listing(name)
    table.add_column(Styled(name, "bold"))
    table.add_row(name, Styled(name, "dim"))
    console.print(table)
    say(console, name)
    print_lines(console, {"name": name})
    with console.status(name):
        pass
    text = written.getvalue().decode()
    assert text.count(shown) == 7
    assert "\x1b[31m" not in text
    # A console of rich's own.
    plain = Console(file=io.StringIO(), width=20)
    say(plain, name)
    assert plain.file.getvalue() == shown + "\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16-le"])
def test_no_encoding_is_too_small(encoding: str) -> None:
    for name, shown in NAMES.items():
        expected = shown.encode(encoding, "backslashreplace").decode(encoding)
        console, written = _terminal(100, encoding)
        table = Listing("name", "number")
        table.add_row(name, "1")
        console.print(table)
        say(console, name)
        lines = written.getvalue().decode(encoding).split("\n")
        assert lines[1].split("  1")[0].strip() == expected
        assert lines[2] == expected


def test_a_table_loses_nothing_wherever_it_is_printed() -> None:
    row = ("photo of a " + "very" * 60 + " long name.png", "猫" * 30, "0.123456789")
    table = Listing("image", "class", "probability")
    table.add_row(*row)
    for width in (40, 80):
        console, written = _terminal(width)
        console.print(table)
        lines = written.getvalue().decode().splitlines()
        kept = Counter("".join(lines))
        assert not Counter("".join(row).replace(" ", "")) - kept
        assert max(map(len, lines)) <= width
    for console in (_terminal(20)[0], make_console(file=io.StringIO(), width=20)):
        with console.capture() as captured:
            console.print(table)
        assert all(text in captured.get().splitlines()[1] for text in row)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_is_valid_and_read_back(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {name: [name, float("nan"), {"inf": float("-inf"), "one": 1.0}] for name in NAMES}
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding, write_through=True))
    print_json(content)
    text = written.getvalue().decode()
    assert not any(character in text for character in "\x1b\x9b\x85\u202e")
    read = json.loads(text)
    names = [name.replace("k\udcc3\udca4se", "käse") for name in NAMES]
    assert list(read) == names
    assert list(read.values()) == [[name, None, {"inf": None, "one": 1.0}] for name in names]
    assert ("猫" in text) == (encoding == "utf-8")
    assert json.loads(json_text(content)) == read


def test_names_in_pictures_are_no_formulas_and_lack_no_glyphs(tmp_path: Path) -> None:
    names = [*NAMES, "cost $5", r"\frac{$$}", "$x_{1}^2$", "", "a_b^c"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.confusion(np.eye(len(names), dtype=np.int64), names, tmp_path / "confusion.png")
        heat = np.ones((2, 2), np.float32)
        for name in (r"\frac{$$} 猫", "a\nb \udce9"):
            report.heat_map(np.zeros((8, 8, 3), np.uint8), heat, (0, 0, 8, 8), name, tmp_path / "cam.png")
    assert of_others("$x$ \n \udce9 \U00010fff") == r"$x$ \n \xe9 \U00010fff"


def test_printing_is_one_file_s_work() -> None:
    """Whoever prints another way takes names for markup sooner or later."""
    allowed = {"rich.console.Console", "rich.console.Group", "rich.text.Text"}
    wrong = []
    for path in Path(groupwise.__file__).parent.rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rich":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                wrong += [f"{where} {name}" for name in names - allowed if not name.startswith("rich.progress.")]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                takes_markup = (
                    called == "TextColumn" and "{" in ast.unparse(node) and "markup=" not in ast.unparse(node)
                )
                if called in ("print", "Console") or called.endswith("from_markup") or takes_markup:
                    wrong.append(f"{where} {called}")
    assert not wrong
