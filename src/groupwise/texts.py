"""Names of others as texts that never act: on one line, on any console, in valid JSON, and nothing of them lost."""

import json
import math
import re
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


def json_text(content: Any, ascii_only: bool = False) -> str:
    r"""Return data as indented JSON that every reader takes: NaN and infinities are null, and all texts are valid.

    What is no character in a file's name is escaped as Python has it, so that Python reads the same name back.

    Examples:
        >>> print(json_text(["caf\udce9", float("nan")]), end="")
        [
          "caf\udce9",
          null
        ]
    """
    text = json.dumps(_valid(content), indent=2, ensure_ascii=ascii_only)
    return _IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


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
