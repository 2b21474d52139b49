"""The package's public names: there, typed, and imported no earlier than they are used."""

import ast
import importlib
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

import groupwise
from tests.pages import ROOT

PACKAGE = Path(groupwise.__file__).parent
LAZY = (
    "groupwise",
    *(f"groupwise.{name}" for name in ("data", "export", "inference", "report", "serving", "training")),
)


@pytest.mark.parametrize("package", LAZY)
def test_what_a_type_checker_sees_is_what_there_is(package: str) -> None:
    module = importlib.import_module(package)
    path = PACKAGE.joinpath(*package.split(".")[1:], "__init__.py")
    (block,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    assert seen <= set(module.__all__)
    assert sorted(module.__all__) == dir(module)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(
        AttributeError, match=f"module '{package}' has no attribute 'nonsense'; it has {dir(module)[0]}"
    ):
        _ = module.nonsense


def test_public_names() -> None:
    from groupwise import training

    assert groupwise.train is training.train
    assert groupwise.errors.UserError is groupwise.UserError
    assert groupwise.data.load_dataset("digits")
    assert groupwise.__version__.count(".") == 2


@pytest.mark.once
def test_every_package_of_the_pages_is_there_after_one_import() -> None:
    names = [path.stem for path in ROOT.joinpath("docs/api").glob("*.md") if path.stem != "index"]
    code = f"import groupwise; [getattr(groupwise, name).__name__ for name in {names}]"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.once
def test_importing_the_package_loads_no_module_but_its_own() -> None:
    code = "import sys; before = set(sys.modules); import groupwise; print(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = [name for name in run.stdout.split() if name.split(".")[0] not in sys.stdlib_module_names]
    assert foreign == ["groupwise", "groupwise.lazy"]


USED = """
import groupwise
from groupwise.training import train

reveal_type(groupwise.accelerate)
reveal_type(groupwise.train)
reveal_type(groupwise.data.load_dataset)
reveal_type(groupwise.models.create)
reveal_type(groupwise.__version__)
reveal_type(train)
groupwise.nonsense
raise groupwise.UserError("no")
"""


@pytest.mark.once
def test_the_public_names_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "used.py").write_text(USED)
    command = [sys.executable, "-m", "mypy", "--config-file", "", "--ignore-missing-imports", "--follow-imports=silent"]
    command += ["--cache-dir", str(tmp_path / "cache"), str(tmp_path / "used.py")]
    # An installed package mypy finds by itself, and takes for an error to be told where.
    is_installed = PACKAGE.parent in map(Path, site.getsitepackages())
    environment = {**os.environ, "MYPYPATH": "" if is_installed else str(PACKAGE.parent)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    revealed = [line.partition("Revealed type is ")[2] for line in run.stdout.splitlines() if "Revealed" in line]
    assert len(revealed) == 6, run.stdout
    assert all(text.startswith('"def (') for text in [*revealed[:4], revealed[5]]), run.stdout
    assert revealed[1] == revealed[5]
    assert "str" in revealed[4]
    assert 'Module has no attribute "nonsense"' in run.stdout
