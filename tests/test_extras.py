"""What the extra `cli` brings and is not there is said in one sentence. (Keras itself brings Rich.)"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.frameworks import BACKEND

HIDE = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in {names} else find(name, *rest)
"""
EXTRA = ("huggingface_hub", "matplotlib", "sklearn", "typer", *([] if BACKEND == "jax" else ["scipy"]))  # JAX has SciPy
INSTALL = 'which is not installed: pip install "groupwise[cli]"'


def run(code: str, *arguments: str, hidden: Sequence[str] = EXTRA) -> "subprocess.CompletedProcess[str]":
    """Run `code` in a process from which some packages are hidden, by default those of the extra."""
    command = [sys.executable, "-c", HIDE.format(names=hidden) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.once
def test_command_says_that_it_needs_typer() -> None:
    done = run("from groupwise.cli import main; sys.exit(main(['models']))")
    assert done.returncode == 2
    assert done.stderr == f"the command groupwise needs typer, {INSTALL}\n"


USES = {
    "import groupwise.report": "drawing needs matplotlib",
    "from groupwise.explain import make; make('shuffle')": "drawing needs matplotlib",
    "from groupwise.weights.hub import fetch; fetch('owner/name')": "hf:owner/name needs huggingface_hub",
}
TRY = """
from groupwise import UserError
for use in {uses}:
    try:
        exec(use)
    except UserError as error:
        print(error)
"""


@pytest.mark.once
@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart"])
def test_serving_says_what_it_needs(package: str) -> None:
    done = run("from groupwise.cli import main; sys.exit(main(['serve', 'run']))", hidden=[package])
    assert done.returncode == 2
    says = f'groupwise: serving needs {package}, which is not installed: pip install "groupwise[serve]"\n'
    assert done.stderr == says


@pytest.mark.once
def test_functions_say_what_they_need() -> None:
    done = run(TRY.format(uses=list(USES)))
    assert done.stdout.splitlines() == [f"{subject}, {INSTALL}" for subject in USES.values()], done.stderr


TRAINING = """
from pathlib import Path
from groupwise import models, train
from groupwise.training import TextObserver, make_plan
from tests import tiny
models.variants()["tiny"] = tiny.VARIANT
folder = Path(sys.argv[1])
dataset = tiny.dataset(folder)
train(make_plan(dataset, "bars.npz", tiny.recipe(epochs=1)), dataset, folder / "run", observer=TextObserver(sys.stdout))
"""


def test_training_needs_no_pictures(tmp_path: Path) -> None:
    done = run(TRAINING, str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[5] == f"curves.png and report.html are left out: drawing them needs matplotlib, {INSTALL}"
    assert lines[-1] == f"{tmp_path / 'run'} holds last.keras, best.keras and metrics.csv"
    assert (tmp_path / "run" / "summary.json").exists()
    assert not [*(tmp_path / "run").glob("*.png"), *(tmp_path / "run").glob("*.html")]


@pytest.mark.once
def test_digits_need_no_scikit_learn() -> None:
    code = "from groupwise.data import load_dataset; load_dataset('digits')"
    assert run(code, hidden=(*EXTRA, "scipy")).returncode == 0
