"""Our declarations of XLA's foreign function interface are those of the headers that the installed jaxlib ships."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.frameworks import BACKEND

ROOT = Path(__file__).parents[1]
DECLARATIONS, COMPARISON = ROOT / "csrc" / "bindings" / "xla_ffi.h", ROOT / "tests" / "core" / "xla_ffi.cc"
FOUND = importlib.util.find_spec("jaxlib")
HEADERS = Path((FOUND.origin if FOUND else None) or "absent").parent / "include"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = [
    pytest.mark.skipif(BACKEND != "jax", reason="Keras runs on another backend than JAX"),
    pytest.mark.skipif(not (HEADERS / "xla" / "ffi").is_dir(), reason="jaxlib's headers are not installed"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler: install g++, or name another in CXX"),
    pytest.mark.skipif(not DECLARATIONS.exists(), reason="csrc is not here"),
]


def compile_comparison(declarations: str, folder: Path) -> subprocess.CompletedProcess:
    """Return how the compiler ends that compares `declarations` with jaxlib's headers."""
    (folder / DECLARATIONS.name).write_text(declarations)
    includes = ["-I", str(folder), "-isystem", str(HEADERS)]
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", *includes, str(COMPARISON)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_sizes_offsets_values_and_signatures_are_xlas(tmp_path: Path) -> None:
    finished = compile_comparison(DECLARATIONS.read_text(), tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert not finished.stderr


@pytest.mark.parametrize(
    ("ours", "wrong", "message"),
    [
        ("XLA_TYPE_F32 = 11", "XLA_TYPE_F32 = 10", "XLA_TYPE_F32: value"),
        ("XLA_OLDEST_VERSION_MINOR = 1", "XLA_OLDEST_VERSION_MINOR = 99", "version"),
        ("int64_t rank;", "int32_t rank;", "XlaBuffer.rank: size"),
        ("int64_t* dimensions;", "int32_t* dimensions;", "dimensions"),
        ("not_used[8]", "not_used[7]", "XlaApi.schedule: offset"),
        ("  XlaItems arguments, results;", "  XlaItems arguments;\n  void* results;", "XlaCallFrame.results: size"),
        ("int major_version, minor_version;", "int minor_version, major_version;", "XlaVersion.major_version: offset"),
        ("uint32_t traits;", "uint64_t traits;", "XlaMetadata.traits: size"),
        ("  void* data;\n} XlaSchedule;", "} XlaSchedule;", "XlaSchedule"),
    ],
)
def test_a_wrong_declaration_is_found(ours: str, wrong: str, message: str, tmp_path: Path) -> None:
    declarations = DECLARATIONS.read_text()
    changed = declarations.replace(ours, wrong)
    assert changed != declarations
    finished = compile_comparison(changed, tmp_path)
    assert finished.returncode != 0
    assert message in finished.stderr
