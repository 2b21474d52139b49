"""The house's measures: no function takes more than seven parameters, and no file has more than 400 lines."""

import ast
from pathlib import Path

import pytest

import groupwise

ROOT = Path(__file__).parents[1]
PACKAGE = Path(groupwise.__file__).parent
MOST_PARAMETERS, MOST_LINES = 7, 400

MORE_PARAMETERS = {
    "public operations, each argument a property of a convolution": {
        "core.convolution.convolve",
        "ops.convolutions.depthwise_conv2d",
        "ops.convolutions.grouped_conv2d",
        "ops.pairs.separable_conv2d",
    },
    "a training, whose options are keywords": {"training.fit.train"},
    "commands, whose parameters are the options that a user types": {
        "cli.diagnosing.diagnose",
        "cli.networks.routing",
        "cli.rewriting.factorize",
        "cli.training.train",
        "cli.using.evaluate",
        "cli.using.predict",
    },
}


def parameters() -> dict[str, int]:
    """Return how many parameters each function of the package has, `self` and what is collected by * not counted."""
    counts: dict[str, int] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
                counts[f"{module}.{node.name}"] = max(len(names), counts.get(f"{module}.{node.name}", 0))
    return counts


@pytest.mark.once
def test_no_function_has_more_than_seven_parameters_but_those_named() -> None:
    named = set().union(*MORE_PARAMETERS.values())
    assert {name for name, count in parameters().items() if count > MOST_PARAMETERS} == named


@pytest.mark.once
def test_no_file_has_more_than_400_lines() -> None:
    endings = (".py", ".cc", ".h", ".cmake", ".css", ".js")
    files = [path for folder in ("src", "csrc", "tests", "benchmarks") for path in (ROOT / folder).rglob("*")]
    assert not [
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.suffix in endings and len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    ]
