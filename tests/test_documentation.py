"""What docstrings show is so: every example in the package runs, and prints what stands below it."""

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

import groupwise
from groupwise.frameworks import FRAMEWORKS
from tests.frameworks import BACKEND

PACKAGE = Path(groupwise.__file__).parent
OTHERS = [PACKAGE / "backends" / name for name in FRAMEWORKS if name != BACKEND]


# The rooms whose examples compute with the framework; to the others all backends are one.
COMPUTING = ("backends", "ops", "layers", "inference")


def modules_with_examples() -> list[Any]:
    """Return the package's modules whose text has examples as parameters, without the other frameworks' own."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if not any(map(path.is_relative_to, OTHERS))]
    shown = [path.relative_to(PACKAGE.parent) for path in paths if ">>> " in path.read_text(encoding="utf-8")]
    return [
        pytest.param(
            ".".join(path.with_suffix("").parts).removesuffix(".__init__"),
            marks=[] if path.parts[1] in COMPUTING else [pytest.mark.once],
        )
        for path in shown
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0
