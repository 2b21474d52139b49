"""Files written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file under another name, with the same ending, and give it its name when it is whole."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)  # noqa: PTH105 - Path.replace says the same, os.replace that it is atomic
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text at once."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
