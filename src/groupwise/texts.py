"""Names of others as texts that never act: on one line, on any console, in valid JSON, and nothing of them lost."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

# Controls, ends of lines, what turns the reading direction of all that follows, and bytes that are no characters.
_ACTING = "\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_ON_A_LINE = re.compile(f"[\x00-\x1f{_ACTING}]")
_IN_JSON = re.compile(f"[{_ACTING}]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str, encoding: str | None = "utf-8") -> str:
    r"""Return a text as one line that any console shows, what it cannot show as escapes.

    Args:
        text: of anybody; the name of a file that is no text holds its bytes as `os.fsdecode` gives them.
        encoding: what the console takes.

    Examples:
        >>> print(printable("cat\n\x1b[31m"))
        cat\n\x1b[31m
        >>> print(printable("caf\udce9 \u732b", "ascii"))
        caf\xe9 \u732b
    """
    encoding = encoding or "utf-8"
    return _ON_A_LINE.sub(_escape, _decoded(text)).encode(encoding, "backslashreplace").decode(encoding)


def quoted(text: str) -> str:
    """Return a text in quotation marks as Python has them, its characters as they are where they can be shown.

    Examples:
        >>> print(quoted("\u732b"), quoted("cat's"))
        '\u732b' "cat's"
    """
    mark = '"' if "'" in text and '"' not in text else "'"
    return f"{mark}{printable(text)}{mark}"


def json_text(content: Any, ascii_only: bool = False, indent: int | None = 2) -> str:
    r"""Return data as JSON that every reader takes: NaN and infinities are null, and all texts are valid.

    It is indented, or for None on one line. What is no character in a file's name is escaped as Python has it, so that
    Python reads the same name back.

    Examples:
        >>> print(json_text(["caf\udce9", float("nan")]), end="")
        [
          "caf\udce9",
          null
        ]
    """
    text = json.dumps(_valid(content), indent=indent, ensure_ascii=ascii_only)
    return _IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def nearest(
    name: str,
    known: Iterable[str],
    count: int = 1,
    likeness: float = 0.5,
    words: Callable[[str], Iterable[str]] = lambda each: (each,),
) -> list[str]:
    """Return the known names that somebody may have meant by `name`, the likeliest first.

    Args:
        count: how many at most.
        likeness: how alike they must be, from 0 to 1.
        words: what a known name is also called: it is as near as the nearest of them.

    Examples:
        >>> nearest("sgd_w", ["adam", "sgd", "lion"])
        ['sgd']
    """
    matcher = difflib.SequenceMatcher(b=name)

    def ratio(word: str) -> float:
        matcher.set_seq1(word)
        # The first two are quick, and never too small.
        is_possible = matcher.real_quick_ratio() >= likeness and matcher.quick_ratio() >= likeness
        return matcher.ratio() if is_possible else 0.0

    ratios = {each: max(map(ratio, words(each))) for each in known}
    return sorted((each for each in ratios if ratios[each] >= likeness), key=ratios.__getitem__, reverse=True)[:count]


def any_of(names: Iterable[str]) -> str:
    """Return names as a sentence offers them for choice.

    Examples:
        >>> any_of(["onnx", "savedmodel", "litert"])
        'onnx, savedmodel or litert'
    """
    return " or ".join(", ".join(names).rsplit(", ", 1))


def did_you_mean(names: Iterable[object]) -> str:
    """Return the question whether one of these names was meant; nothing where there is none.

    Examples:
        >>> did_you_mean(["cat", "dog"]), did_you_mean([])
        ('did you mean cat or dog?', '')
    """
    text = " or ".join(map(str, names))
    return f"did you mean {text}?" if text else ""


def first_few(texts: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """Return the first texts in a row, and how many more there are.

    Examples:
        >>> first_few("ab", most=2), first_few("abcd", most=2), first_few("abcd", most=2, between="; ")
        ('a, b', 'a, b and 2 more', 'a; b; and 2 more')
    """
    all_texts = list(texts)
    comma = between.strip(", ")  # none before this "and" but a semicolon
    more = f"{comma} and {len(all_texts) - most} more" if len(all_texts) > most else ""
    return between.join(all_texts[:most]) + more


def html_table(names: Sequence[str], rows: Iterable[Iterable[str]], texts: int = 1) -> str:
    r"""Return a table as HTML, for a notebook.

    Args:
        names: of its columns.
        rows: the cells of each row.
        texts: how many of the first columns are texts, on the left of their cells; the others are numbers.

    Examples:
        >>> print(html_table(["layer"], [["a<b"]]).replace("<tr>", "\n<tr>"))
        <table>
        <tr><th style="text-align:left">layer</th></tr>
        <tr><td style="text-align:left">a&lt;b</td></tr></table>
    """

    def line(cells: Iterable[str], tag: str) -> str:
        sides = ["left" if place < texts else "right" for place, _ in enumerate(names)]
        each = (
            f'<{tag} style="text-align:{side}">{escape(printable(cell))}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f"<tr>{''.join(each)}</tr>"

    return f"<table>{line(names, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _valid(content: Any) -> Any:
    if isinstance(content, dict):
        return {_decoded(name): _valid(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_valid(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return _decoded(content) if isinstance(content, str) else content


def _decoded(text: str) -> str:
    """Return UTF-8 that Python took for bytes, under a locale without it, as characters; other bytes as they are."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return text


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return _SHORT.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
