"""What JAX compiled, kept for the next process."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from groupwise.cli import compilation_cache
from groupwise.cli.backend import settle_backend
from groupwise.cli.compilation_cache import folder, keep_compiled
from tests.frameworks import BACKEND, in_new_process

STEP = """
from groupwise.cli.backend import settle_backend
settle_backend("jax")
from collections import Counter
import numpy as np
from jax import monitoring
seen = Counter()
monitoring.register_event_listener(lambda event, **_: seen.update([event.rsplit("/", 1)[-1]]))
import keras
from groupwise import models
keras.utils.set_random_seed(1)
network = models.create("mnist_cnn", num_classes=3, input_shape=(8, 8, 1))
network.compile("sgd", "categorical_crossentropy", jit_compile=True)
images, labels = np.ones((2, 8, 8, 1), "float32"), np.eye(3, dtype="float32")[:2]
print("numbers", network.train_on_batch(images, labels), network.predict_on_batch(images).tolist())
print("requests", seen["compile_requests_use_cache"], "hits", seen["cache_hits"])
"""


@pytest.fixture
def _unset(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command's own rules hold; what it sets ends with the test."""
    for name in ("GROUPWISE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", compilation_cache.SHORTEST[0]):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.once
@pytest.mark.usefixtures("_unset")
def test_the_folder_is_the_users_alone_and_jaxs_own_variables_go_before(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUPWISE_COMPILATION_CACHE", "0")
    keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.delenv("GROUPWISE_COMPILATION_CACHE")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "own")
    keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "own"
    assert not cache_folder.exists()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(folder())
    assert folder().parent == cache_folder
    assert folder().stat().st_mode & 0o077 == 0 or os.name == "nt"


@pytest.mark.once
@pytest.mark.usefixtures("_unset")
def test_what_cannot_be_kept_is_no_error(cache_folder: Path) -> None:
    cache_folder.write_text("a file where the folder would be")
    keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.once
@pytest.mark.usefixtures("_unset")
def test_the_oldest_entries_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation_cache, "MOST", 100)
    folder().mkdir(parents=True)
    names = [f"jit_{number}-cache" for number in range(6)]
    for age, name in enumerate(names):
        (folder() / name).write_bytes(bytes(20))
        os.utime(folder() / name, (age, age))
    (folder() / "other").write_bytes(bytes(200))
    keep_compiled()
    assert sorted(path.name for path in folder().iterdir()) == [*names[4:], "other"]


@pytest.mark.skipif(BACKEND != "jax", reason="the others have no such cache")
@pytest.mark.usefixtures("_unset")
def test_the_core_is_called_by_what_was_kept() -> None:
    def run() -> tuple[str, int, int]:
        done: subprocess.CompletedProcess = in_new_process(STEP)
        assert done.returncode == 0, done.stderr
        match = re.search(r"numbers (.*)\nrequests (\d+) hits (\d+)", done.stdout)
        assert match is not None
        return match[1], int(match[2]), int(match[3])

    numbers, requests, _ = run()
    assert run() == (numbers, requests, requests)
    damaged = [path for path in folder().iterdir() if path.name.startswith(("jit_train_step", "jit__predict"))]
    assert len(damaged) == 2
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    assert run() == (numbers, requests, requests - 2)


@pytest.mark.once
@pytest.mark.usefixtures("_unset")
def test_the_command_keeps_what_jax_compiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    settle_backend("torch")
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    settle_backend("jax")
    assert "JAX_COMPILATION_CACHE_DIR" in os.environ
