"""Our declarations of TensorFlow's C interface are those of the headers that the installed TensorFlow ships."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.frameworks import BACKEND

DECLARATIONS = Path(__file__).parents[1] / "csrc" / "bindings" / "tensorflow_c.h"
FOUND = importlib.util.find_spec("tensorflow")
HEADERS = Path((FOUND.origin if FOUND else None) or "absent").parent / "include"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = [
    pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras runs on another backend than TensorFlow"),
    pytest.mark.skipif(not (HEADERS / "tensorflow" / "c").is_dir(), reason="TensorFlow's headers are not installed"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler: install g++, or name another in CXX"),
    pytest.mark.skipif(not DECLARATIONS.exists(), reason="csrc is not here"),
]

# Ours are renamed from TF_ to GW_TF_. `Theirs` puts TensorFlow's types in the place of ours, which are distinct.
COMPARISON = """
#include <type_traits>
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_datatype.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"
{declarations}
template <class T> struct Theirs {{ using type = T; }};
template <class T> struct Theirs<T*> {{ using type = typename Theirs<T>::type*; }};
template <class T> struct Theirs<const T> {{ using type = const typename Theirs<T>::type; }};
template <class R, class... A> struct Theirs<R(A...)> {{
  using type = typename Theirs<R>::type(typename Theirs<A>::type...);
}};
{types}
{functions}
{values}
static_assert(sizeof(GW_TF_DataType) == sizeof(TF_DataType) && sizeof(GW_TF_Code) == sizeof(TF_Code));
"""


def compile_comparison(declarations: str, tmp_path: Path) -> subprocess.CompletedProcess:
    """Return how the compiler ends that compares `declarations` with TensorFlow's headers."""
    types = re.findall(r"typedef (?:struct|enum) TF_(\w+)", declarations)
    functions = re.findall(r"\bTF_(\w+)\(", declarations)
    values = re.findall(r"\bTF_(\w+) = \d", declarations)
    assert len(types) >= 9
    assert len(functions) >= 20
    assert len(values) >= 5
    source = COMPARISON.format(
        declarations=re.sub(r"\bTF_", "GW_TF_", declarations.replace("#pragma once", "")),
        types="\n".join(f"template <> struct Theirs<GW_TF_{name}> {{ using type = TF_{name}; }};" for name in types),
        functions="\n".join(
            f"static_assert(std::is_same<Theirs<decltype(GW_TF_{name})>::type, decltype(TF_{name})>::value, "
            f'"signature of TF_{name}");'
            for name in functions
        ),
        values="\n".join(f'static_assert(int(GW_TF_{name}) == int(TF_{name}), "value of {name}");' for name in values),
    )
    path = tmp_path / "comparison.cc"
    path.write_text(source)
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", "-w", "-isystem", str(HEADERS), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_functions_and_values_are_tensorflows(tmp_path: Path) -> None:
    finished = compile_comparison(DECLARATIONS.read_text(), tmp_path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("ours", "wrong", "message"),
    [
        ("int TF_NumDims(const TF_Tensor*)", "int TF_NumDims(const TF_Status*)", "signature of TF_NumDims"),
        ("int64_t TF_Dim", "int TF_Dim", "signature of TF_Dim"),
        ("TF_Tensor*, int axis)", "TF_Tensor*, int64_t axis)", "signature of TF_Dim"),
        ("const char* name, TF_KernelBuilder*", "TF_KernelBuilder*", "signature of TF_RegisterKernelBuilder"),
        ("(void* kernel, TF_OpKernelContext*)", "(void* kernel)", "signature of TF_NewKernelBuilder"),
        ("TF_RESOURCE_EXHAUSTED = 8", "TF_RESOURCE_EXHAUSTED = 9", "value of RESOURCE_EXHAUSTED"),
        ("TF_DeleteTensor(", "TF_DropTensor(", "TF_DropTensor"),
    ],
)
def test_a_wrong_declaration_is_found(ours: str, wrong: str, message: str, tmp_path: Path) -> None:
    declarations = DECLARATIONS.read_text()
    changed = declarations.replace(ours, wrong)
    assert changed != declarations
    finished = compile_comparison(changed, tmp_path)
    assert finished.returncode != 0
    assert message in finished.stderr
