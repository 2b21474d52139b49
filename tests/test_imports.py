"""The rules of dependency of docs/architecture.md, read from the source: imports go downward only."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

import groupwise
from groupwise.frameworks import FRAMEWORKS
from tests.frameworks import BACKEND

PACKAGE = Path(groupwise.__file__).parent
# What needs nothing of the package.
LOWEST = ("errors", "interruption", "lazy", "texts", "frameworks", "timing", "machine", "peers", "keras_private")
GROUND = {*LOWEST, "writing", "spec", "launchers"}
# What each room may import beside itself, from below; a room not named here stands nowhere.
ALLOWED: dict[str, set[str]] = {
    **{room: set() for room in LOWEST},
    "writing": {"errors"},
    "launchers": {"errors"},
    "spec": {"errors"},
    "core": {"errors", "spec"},
    "data": {"errors", "lazy", "writing", "machine", "texts", "core"},
    "routing": {"errors", "writing", "machine", "timing", "spec", "core"},
    "recipes": {"errors", "writing", "texts", "data"},
    "backends": GROUND | {"core", "routing"},
    "ops": GROUND | {"core", "routing", "backends"},
    "layers": GROUND | {"core", "backends", "ops"},
    "weights": GROUND | {"data", "backends", "layers"},
    "running": GROUND | {"core", "backends", "layers", "ops"},
    "models": GROUND | {"backends", "data", "layers", "weights", "running"},
    "rewrite": GROUND | {"backends", "layers", "running", "models"},
    "inference": GROUND | {"data", "weights", "models", "rewrite"},
    "diagnosis": GROUND | {"data", "backends", "layers", "running", "models", "rewrite", "inference"},
    "report": GROUND | {"data", "weights", "models", "inference"},
    "explain": GROUND | {"report", "ops", "layers", "models", "rewrite"},
    "training": GROUND | {"data", "backends", "report", "recipes", "weights", "models", "inference"},
    "serving": GROUND | {"data", "report", "models", "inference"},
    "export": GROUND | {"backends", "layers", "models", "inference", "rewrite"},
}
ALLOWED["cli"] = {*ALLOWED}
# `core` beside the backends: its table of activations, and the windows of its pooling. `backends` above `ops`: batch
# norm and pooling are no convolutions and have no list; PyTorch's own files of weights; what XLA compiles; exporters;
# steps; the card that a training runs on.


def strings(nodes: Iterable[ast.expr]) -> set[str]:
    """Return those of some expressions that are strings."""
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@cache
def modules() -> dict[str, set[str]]:
    """Return each module (dotted, below the package) and the names that it imports, at their first use or by name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        imports = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imports |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imports |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                imports |= strings(node.args)
        found[".".join(path.relative_to(PACKAGE).with_suffix("").parts)] = imports
    return found


def rooms_of(room: str) -> set[str]:
    """Return the other rooms that a room imports."""
    own = [imports for module, imports in modules().items() if module.split(".")[0] == room]
    names = {name.split(".")[1] for imports in own for name in imports if name.startswith("groupwise.")}
    return names & ALLOWED.keys() - {room}


@pytest.mark.once
@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_what_it_may(room: str) -> None:
    assert rooms_of(room) <= ALLOWED[room]
    assert room == "cli" or ALLOWED[room] - GROUND <= rooms_of(room), "allowed for nothing"


@pytest.mark.once
def test_every_room_has_its_place_below_those_that_import_it() -> None:
    assert {module.split(".")[0] for module in modules()} - {"__init__", "__main__"} == ALLOWED.keys()
    places = list(ALLOWED)
    assert all(ALLOWED[room] <= {*places[:place]} for place, room in enumerate(places))


@pytest.mark.once
def test_only_a_backend_imports_its_framework() -> None:
    foreign = {
        f"{module} imports {name}"
        for module, imports in modules().items()
        for name in imports
        if name.split(".")[0] in FRAMEWORKS.keys() - {module.removeprefix("backends.").split(".")[0]}
    }
    # The command does, before Keras: silently.
    assert foreign == {"cli.backend imports tensorflow"}


UNDERSCORED = {
    "backends.tensorflow.export": {"_get_ops_details"},
    "backends.torch.folding": {"_pytree", "_version"},
    "backends.torch.native": {"_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"},
    "backends.torch.operations": {
        *("_AutoDispatchBelowAutograd", "_C", "_SingleLevelFunction", "_after_autograd_keyset"),
        *("_are_functorch_transforms_active", "_current_level", "_dispatch_keys", "_functorch", "_get_tracing_state"),
        *("_len_torch_dispatch_stack", "_len_torch_function_stack", "_profiler_enabled", "_set_fwd_grad_enabled"),
    },
    "backends.torch.passes": {"_C"},
    "peers": {"_exit"},
    "backends.torch.program": {"_dynamo", "_pytree"},
    "backends.torch.recording": {
        *("_cdata", "_disable_current_modes", "_getframe", "_local_scalar_dense", "_python_dispatch", "_pytree"),
        *("_pack_padded_sequence", "_schema"),
    },
    "backends.torch.settings": {"_modules"},
    "backends.torch.step": {
        *("_C", "_device", "_get_current_function_mode_stack", "_len_torch_dispatch_stack", "_pytree"),
        "_torchdynamo_orig_callable",
    },
    "cli.application": {"_exit"},
    "data.rand_augment": {"_Enhance"},
    "models.efficientnet": {"_replace"},
    "rewrite.assembling": {"_fields"},
    "rewrite.changes": {"_groupwise_report"},
    "rewrite.copying": {"_modules", "_set_padding"},
    "running.joining": {"_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks"},
    "spec": {"_extent"},
    "weights.hub": {"_CACHED_NO_EXIST"},
    "weights.keys": {"_orig_mod"},
}
"""The underscored names of other objects than `self` that modules use: other libraries' and ours, none of Keras's."""


def underscored(path: Path) -> set[str]:
    """Return the names with one underscore before them that a file asks of other objects than `self` and `cls`.

    They are written after a dot, imported, or strings: for `getattr` and the like, for `vars`, or listed under a name.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not f"{node.module}.".startswith("groupwise."):
            found |= {name for alias in node.names for name in (*str(node.module).split("."), alias.name)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            found |= strings(node.args[1:2])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("vars("):
            found |= strings(node.args[:1])
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).startswith("vars("):
            found |= strings([node.slice])
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple | ast.List):
            found |= strings(node.value.elts)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@pytest.mark.once
def test_private_names_of_keras_stand_in_one_file() -> None:
    other = {module: names for module, names in modules().items() if module != "keras_private"}
    assert not [f"{module} imports {name}" for module, names in other.items() for name in names if "keras.src" in name]
    asked = {module: underscored(PACKAGE / f"{module.replace('.', '/')}.py") for module in other}
    wrong = {module: found - UNDERSCORED.get(module, set()) for module, found in asked.items()}
    assert not {module: found for module, found in wrong.items() if found}
    assert not {module: names - asked[module] for module, names in UNDERSCORED.items() if names - asked[module]}


@pytest.mark.once
def test_spec_core_and_routing_need_only_the_standard_library_and_numpy() -> None:
    tops = {
        name.split(".")[0]
        for module, imports in modules().items()
        for name in imports
        if module.split(".")[0] in ("spec", "core", "routing")
    }
    assert tops <= set(sys.stdlib_module_names) | {"groupwise", "numpy"}


@pytest.mark.once
def test_weight_files_need_no_keras() -> None:
    assert not {name for room in ("weights.reading", "weights.hub") for name in modules()[room] if "keras" in name}


@pytest.mark.once
def test_nothing_imports_tests_or_benchmarks() -> None:
    tops = {name.split(".")[0] for imports in modules().values() for name in imports}
    assert not tops & {"tests", "benchmarks"}


def loaded(*codes: str) -> list[set[str]]:
    """Return the frameworks that a fresh process has loaded after running each of some codes."""
    print_them = f"print(*sorted(set(sys.modules) & {set(FRAMEWORKS)}))"
    code = "; ".join(["import sys", *(part for code in codes for part in (code, print_them))])
    environment = {**os.environ, "KERAS_BACKEND": BACKEND}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [set(line.split()) for line in run.stdout.splitlines()]


def test_neither_the_package_nor_a_seed_loads_a_framework_that_keras_does_not() -> None:
    # Keras on PyTorch loads JAX where it is installed, for its optional tree utilities.
    members = "import groupwise; groupwise.layers, groupwise.ops, groupwise.models.list_models()"
    seed = "from groupwise.training.seed import set_seed; set_seed(1)"
    by_keras, by_members, by_seed = loaded("import keras", members, seed)
    assert by_members == by_seed == by_keras | {BACKEND}


@pytest.mark.once
def test_importing_the_command_and_the_recipes_loads_neither_keras_nor_a_framework() -> None:
    modules = "groupwise.cli.application, groupwise.recipes"
    assert loaded(f"import {modules}; assert not {{'keras', 'matplotlib'}} & sys.modules.keys()") == [set()]


@pytest.mark.once
def test_only_the_command_prints() -> None:
    below = {module: imports for module, imports in modules().items() if module.split(".")[0] != "cli"}
    tops = {name.split(".")[0] for imports in below.values() for name in imports}
    assert not tops & {"rich", "typer"}


@pytest.mark.once
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
