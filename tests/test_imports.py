"""The rules of dependency of docs/architecture.md, read from the source: imports go downward only."""

import ast
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import groupwise
from groupwise.frameworks import FRAMEWORKS
from tests.frameworks import BACKEND

PACKAGE = Path(groupwise.__file__).parent
# A room may import itself and those that stand before it.
ORDER = [
    *("errors", "interruption", "lazy", "texts", "frameworks", "timing", "writing", "machine", "spec", "keras_private"),
    *("core", "data", "routing", "backends", "ops", "layers", "weights", "models"),
    *("report", "recipes", "inference", "rewrite", "explain", "training", "export", "cli"),
]
ALLOWED: dict[str, set[str]] = {
    "interruption": set(),
    "lazy": set(),
    "frameworks": set(),
    "timing": set(),
    "writing": {"errors"},
    "spec": {"errors"},
    "keras_private": set(),
    "core": {"errors", "spec"},
    "routing": {"errors", "writing", "machine", "timing", "spec", "core"},
    "data": {"errors", "lazy", "writing", "machine", "texts"},
    "report": {"errors", "writing", "texts"},
    "export": {*ORDER} - {"training", "cli"},
}


@cache
def modules() -> dict[str, set[str]]:
    """Return each module (dotted, below the package) and the names that it imports, lazy imports included."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        imports = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imports |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[".".join(path.relative_to(PACKAGE).with_suffix("").parts)] = imports
    return found


def test_imports_go_downward_only() -> None:
    wrong = []
    for module, imports in modules().items():
        room = module.split(".")[0]
        if room == "__init__":
            continue
        allowed = ALLOWED.get(room, set(ORDER[: ORDER.index(room)])) | {room}
        rooms = {name.split(".")[1] for name in imports if name.startswith("groupwise.")}
        wrong += [f"{module} imports {other}" for other in rooms & set(ORDER) if other not in allowed]
    assert not wrong


def test_every_room_has_its_place() -> None:
    assert {module.split(".")[0] for module in modules()} - {"__init__"} <= set(ORDER)


def test_only_a_backend_imports_its_framework() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, imports in modules().items()
        for name in imports
        if name.split(".")[0] in FRAMEWORKS.keys() - {module.removeprefix("backends.").split(".")[0]}
    ]
    assert not wrong


UNDERSCORED = {
    "backends.tensorflow.export": {"_get_ops_details"},
    "backends.torch.core": {"_C"},
    "backends.torch.native": {"_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"},
    "backends.torch.operations": {
        *("_AutoDispatchBelowAutograd", "_after_autograd_keyset", "_are_functorch_transforms_active"),
        *("_current_level", "_set_fwd_grad_enabled"),
    },
    "data.rand_augment": {"_Enhance"},
    "models.efficientnet": {"_replace"},
    "rewrite.assembling": {"_fields"},
    "rewrite.copying": {"_set_padding"},
    "spec": {"_extent"},
    "weights.hub": {"_CACHED_NO_EXIST"},
}
"""The underscored names of other objects than `self` that modules use: other libraries' and ours, none of Keras's."""


def underscored(path: Path) -> set[str]:
    """Return the names with one underscore before them that a file asks of other objects than `self` and `cls`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            found |= {str(value.value) for value in node.args[1:2] if isinstance(value, ast.Constant)}
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_private_names_of_keras_stand_in_one_file() -> None:
    other = {module: names for module, names in modules().items() if module != "keras_private"}
    assert not [f"{module} imports {name}" for module, names in other.items() for name in names if "keras.src" in name]
    asked = {module: underscored(PACKAGE / f"{module.replace('.', '/')}.py") for module in other}
    wrong = {module: found - UNDERSCORED.get(module, set()) for module, found in asked.items()}
    assert not {module: found for module, found in wrong.items() if found}
    assert not {module: names - asked[module] for module, names in UNDERSCORED.items() if names - asked[module]}


def test_spec_core_and_routing_need_only_the_standard_library_and_numpy() -> None:
    tops = {
        name.split(".")[0]
        for module, imports in modules().items()
        for name in imports
        if module.split(".")[0] in ("spec", "core", "routing")
    }
    assert tops <= set(sys.stdlib_module_names) | {"groupwise", "numpy"}


def test_weight_files_need_no_keras() -> None:
    assert not {name for room in ("weights.reading", "weights.hub") for name in modules()[room] if "keras" in name}


def test_nothing_imports_tests_or_benchmarks() -> None:
    tops = {name.split(".")[0] for imports in modules().values() for name in imports}
    assert not tops & {"tests", "benchmarks"}


def loaded(code: str) -> set[str]:
    """Return the frameworks that a fresh process has loaded after running `code`."""
    code = f"import sys; {code}; print(*sorted(set(sys.modules) & {set(FRAMEWORKS)}))"
    environment = {**os.environ, "KERAS_BACKEND": BACKEND}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_package_loads_no_framework_that_keras_does_not() -> None:
    # Keras on PyTorch loads JAX where it is installed, for its optional tree utilities.
    members = "import groupwise; groupwise.layers, groupwise.ops, groupwise.models.list_models()"
    assert loaded(members) == loaded("import keras") | {BACKEND}


def test_importing_the_command_loads_neither_keras_nor_a_framework() -> None:
    assert loaded("import groupwise.cli; assert 'keras' not in sys.modules") == set()


def test_below_the_command_nothing_prints_for_it() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, imports in modules().items()
        for name in imports
        if module.split(".")[0] != "cli"
        and (name.split(".")[0] in ("rich", "typer") or name.startswith("groupwise.cli"))
    ]
    assert not wrong


def test_below_the_command_no_text_speaks_of_commands_and_options() -> None:
    """Docstrings and comments may show a command, and so may a page of `explain`, which says how it was made.

    `groupwise tune` is what no function of the library does.
    """
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] in ("cli", "explain"):
            continue
        tree = ast.parse(path.read_text())
        documentation = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        wrong += [
            f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
            if re.search(r"(?<![\w-])--[a-z]|`groupwise (?!tune`)", node.value)
        ]
    assert not wrong
