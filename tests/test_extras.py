"""What the extra `cli` brings and is not there is said in one sentence. (Keras itself brings Rich.)"""

import subprocess
import sys

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


def run(code: str) -> "subprocess.CompletedProcess[str]":
    """Run `code` in a process that has none of the packages of the extra."""
    command = [sys.executable, "-c", HIDE.format(names=EXTRA) + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_says_that_it_needs_typer() -> None:
    done = run("from groupwise.cli import main; sys.exit(main(['models']))")
    assert done.returncode == 2
    assert done.stderr == f"the command groupwise needs typer, {INSTALL}\n"


@pytest.mark.parametrize(
    ("code", "subject"),
    [
        ("import groupwise.report", "drawing needs matplotlib"),
        ("from groupwise.explain import make; make('shuffle')", "drawing needs matplotlib"),
        ("from groupwise.weights.hub import fetch; fetch('owner/name')", "hf:owner/name needs huggingface_hub"),
    ],
)
def test_functions_say_what_they_need(code: str, subject: str) -> None:
    assert run(code).stderr.splitlines()[-1] == f"groupwise.errors.UserError: {subject}, {INSTALL}"


def test_digits_need_no_scikit_learn() -> None:
    code = "from groupwise.data import load_dataset; load_dataset('digits')"
    assert run(code).returncode == 0
