"""The C core's binding to TensorFlow in processes of other settings: without oneDNN, forked, and not there."""

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from groupwise.core import library
from tests.frameworks import BACKEND, in_new_process, skip_without_core

if BACKEND != "tensorflow":
    pytest.skip("Keras runs on another backend than TensorFlow", allow_module_level=True)
core: Any = importlib.import_module("groupwise.backends.tensorflow.core")
skip_without_core()


WITHOUT_ONEDNN = """
import keras
from groupwise import backends
from groupwise.ops import grouped_conv2d
from groupwise.routing import explain
from groupwise.spec import DTYPES, ConvSpec
import tensorflow as tf
for dtype in DTYPES:
    inputs, kernel = tf.random.normal((2, 6, 6, 8), dtype=dtype), tf.random.normal((3, 3, 4, 8), dtype=dtype)
    with tf.GradientTape() as tape:
        tape.watch([inputs, kernel])
        outputs = grouped_conv2d(inputs, kernel, groups=2)
    gradients = tape.gradient(outputs, [inputs, kernel])
    assert all(bool(tf.reduce_all(tf.math.is_finite(gradient))) for gradient in gradients)
    spec = ConvSpec.of(inputs.shape, kernel.shape, groups=2, dtype=dtype)
    print(explain(spec, backends.active.runtime()).algorithm)
"""


@pytest.mark.parametrize(("core", "algorithms"), [("1", ["core", "core", "core", "blocks"]), ("0", ["blocks"] * 4)])
def test_gradients_are_there_where_tensorflow_has_no_onednn(core: str, algorithms: list[str]) -> None:
    """TensorFlow's input gradient works without it, its kernel gradient fails: a probe of the first alone was wrong."""
    finished = in_new_process(WITHOUT_ONEDNN, TF_ENABLE_ONEDNN_OPTS="0", GROUPWISE_CORE=core)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == algorithms


FORK = """
import os, numpy as np, tensorflow as tf
from groupwise.backends.tensorflow import core
from groupwise.spec import ConvSpec
assert core.is_available()
spec = ConvSpec.of((8, 16, 16, 32), (3, 3, 4, 32), 8)
x, w = tf.random.normal(spec.input_shape), tf.random.normal(spec.kernel_shape)
before = core.convolve(x, w, spec).numpy()
child = os.fork()
after = [core.convolve(x, w, spec).numpy() for _ in range(5)]
same = all(np.array_equal(before, again) for again in after)
if child == 0:
    os._exit(0 if same else 1)
assert same
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_use_after_fork() -> None:
    finished = in_new_process(FORK)
    assert finished.returncode == 0, finished.stderr


MISSING = """
import os, warnings
from groupwise.backends.tensorflow import core
for wanted in "01":
    os.environ["GROUPWISE_CORE"] = wanted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not core.is_available() and not core.is_available()
    print(*(warning.message for warning in caught if "groupwise" in str(warning.message)), sep="")
"""


def test_a_binding_that_does_not_load_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / library.path().name).symlink_to(library.path().resolve())
    finished = in_new_process(MISSING, GROUPWISE_CORE_FOLDER=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    turned_off, missing = finished.stdout.splitlines()
    assert turned_off == ""
    assert missing.startswith("groupwise runs on TensorFlow's own convolutions, without the C core")
    assert missing.count(library.path("groupwise_tensorflow").name) == missing.count("cannot open") == 1
