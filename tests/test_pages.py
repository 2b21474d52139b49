"""What the README and the pages show is so: Python runs, commands, options, names, paths and links exist."""

import importlib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import pytest
import typer

import groupwise
from groupwise import models
from groupwise.cli.application import app
from tests.pages import PAGES, ROOT, SITE, anchors, blocks, commands, inline_code, links, name_of
from tests.parity_cases import CASES

API = sorted(path for path in (ROOT / "docs/api").glob("*.md") if path.stem != "index")
OTHERS = {"tensorflow", "jax", "torch"} - {keras.backend.backend()}
FILES = [path for folder in ("benchmarks", "csrc", "docs", "src", "tests") for path in (ROOT / folder).rglob("*.*")]
FILES += ROOT.glob("*.*")
PROGRAM: Any = typer.main.get_command(app)

# Operations are shown on every backend, the rest on one.
OPERATIONS = ("docs/grouped.md", "docs/separable.md", "docs/shuffle.md")
# Hundreds of layers are built; a second framework is started.
SLOW = ("docs/forms.md", "docs/export.md")


def each(pages: Iterable[Path]) -> list[Any]:
    """Return the pages as parameters of a test."""
    return [pytest.param(page, id=name_of(page)) for page in pages]


def each_that_runs() -> list[Any]:
    """Return the pages with Python on them as parameters of a test, with their marks."""
    pages = [page for page in SITE if blocks(page, "python")]
    marks = {name: [pytest.mark.once, pytest.mark.slow] for name in SLOW} | {name: [] for name in OPERATIONS}
    return [pytest.param(page, id=name_of(page), marks=marks.get(name_of(page), [pytest.mark.once])) for page in pages]


@pytest.mark.parametrize("page", each_that_runs())
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        code = compile("\n" * block.line + block.text, name_of(page), "exec")
        if block.runs and not any(f"import {other}" in block.text for other in OTHERS):
            exec(code, names)


@pytest.mark.once
@pytest.mark.parametrize("page", each(page for page in PAGES if any(commands(page, "groupwise"))))
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    for name, *arguments in commands(page, "groupwise"):
        PROGRAM.commands[name].make_context(name, arguments)


@pytest.mark.once
@pytest.mark.parametrize("page", each(PAGES))
def test_modules_that_are_run_exist(page: Path) -> None:
    calls = [*(" ".join(call) for call in commands(page, "python")), *inline_code(page)]
    for call in calls:
        for module in re.findall(r"-m ((?:benchmarks|tests)(?:\.\w+)?)", call):
            assert importlib.util.find_spec(module), module


@pytest.mark.once
@pytest.mark.parametrize("page", each(PAGES))
def test_options_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        program, name, *words = [*code.split(), "", ""]
        if program == "groupwise" and name and "|" not in code:
            assert name in PROGRAM.commands, code
            known = {option for parameter in PROGRAM.commands[name].params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, code


@pytest.mark.once
@pytest.mark.parametrize("page", each(PAGES))
def test_names_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        match = re.match(r"groupwise((?:\.[A-Za-z_]\w*)+)", code)
        if match:
            value: Any = groupwise
            for name in match[1].split(".")[1:]:
                value = getattr(value, name, None) or importlib.import_module(f"{value.__name__}.{name}")


@pytest.mark.once
@pytest.mark.parametrize("page", each(PAGES))
def test_paths_in_the_text_exist(page: Path) -> None:
    """Files of the checkout are named from wherever the page is about: `core/epilogues.py`, `probing.py`."""
    for code in inline_code(page):
        if re.match(r"(?:benchmarks|csrc|docs|src|tests)/[\w./-]+/?$", code):
            assert (ROOT / code).exists(), code
        elif re.match(r"(?:[\w.*-]+/)*[\w*-]+\.(?:py|md|cc|h|toml|txt|cmake|html)$", code):
            assert any(path.match(code) for path in FILES), code


@pytest.mark.once
def test_counts_in_the_text_are_so() -> None:
    networks, agreeing = len(models.list_models()), len(CASES)
    readme, listing, parity = (
        (ROOT / name).read_text() for name in ("README.md", "docs/networks.md", "docs/parity.md")
    )
    assert f"{networks} names" in readme
    assert f"all {networks}\n" in listing
    assert f"[{agreeing} of them](docs/parity.md)" in readme
    assert f"\n{agreeing} networks;" in parity
    assert len(re.findall(r"^\| \S+ \| `", parity, re.MULTILINE)) == agreeing


@pytest.mark.once
@pytest.mark.parametrize("page", each(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.once
def test_every_name_of_the_package_is_listed() -> None:
    listed = set(inline_code(ROOT / "docs/api/index.md"))
    assert listed >= {f"groupwise.{name}" for name in groupwise.__all__}


@pytest.mark.once
@pytest.mark.parametrize("page", each(API))
def test_every_public_name_is_documented(page: Path) -> None:
    documented = set(re.findall(r"^\.\. (?:auto\w+|data):: (\w+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert documented >= set(importlib.import_module(f"groupwise.{page.stem}").__all__)
