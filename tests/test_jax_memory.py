"""JAX: XLA's memory of a step stays for the next one, and is no more than it was."""

import json
import os
import subprocess
import sys
from typing import Any

import keras
import pytest

from tests.frameworks import needs_core

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA's memory, on JAX"),
    pytest.mark.skipif(sys.platform != "linux", reason="of glibc"),
    needs_core,
]

START = """
import ctypes, json, resource, threading
import jax, keras, numpy as np
from groupwise import layers
from groupwise.core import library

keras.utils.set_random_seed(1)
binding = ctypes.CDLL(str(library.path("groupwise_jax")))
kept = binding.gw_jax_kept_memory
kept.restype = ctypes.c_int64

def made():
    inputs = keras.Input((None, None, 8))
    x = inputs
    for _ in range(3):
        x = layers.GroupedConv2D(16, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    model.compile("sgd", "mse")
    return model

def images(size, batch=4):
    return np.random.default_rng(size).normal(size=(batch, size, size, 8)).astype("float32")

def train(model, size, steps=3):
    return [float(model.train_on_batch(images(size), np.ones((4, 2), "float32"))) for _ in range(steps)]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def faults(model, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    train(model, size, 1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def said(code: str, **environment: str) -> Any:
    """Return what a process of its own prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_step_finds_the_memory_of_the_one_before() -> None:
    code = """
model = made()
losses = train(model, 128, 5)
found = {"losses": losses, "kept": kept(), "faults": faults(model, 128)}
binding.gw_jax_release_memory()
print(json.dumps({**found, "released": kept(), "on": train(model, 128, 1)}))
"""
    keeps, not_so = said(code), said(code, GROUPWISE_KEEP_MEMORY="0")
    assert keeps["kept"] > 8 << 20
    assert keeps["faults"] < not_so["faults"] / 4
    assert keeps["released"] == not_so["kept"] == 0
    assert keeps["losses"] + keeps["on"] == not_so["losses"] + not_so["on"]  # to the bit


def test_steps_of_many_sizes_need_no_more_memory_than_without() -> None:
    code = """
model = made()
for size in (160, 96, 192, 160):
    train(model, size, 2)
    model.predict_on_batch(images(size))
print(json.dumps(peak()))
"""
    assert said(code) < said(code, GROUPWISE_KEEP_MEMORY="0") + (48 << 20)


def test_several_threads_share_what_is_kept() -> None:
    code = """
model = made()
sizes = (96, 128, 160)
wanted = {size: model.predict_on_batch(images(size)) for size in sizes}
wrong = []

def predict(size):
    for _ in range(8):
        if not (model.predict_on_batch(images(size)) == wanted[size]).all():
            wrong.append(size)

threads = [threading.Thread(target=predict, args=(size,)) for size in sizes]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(wrong))
"""
    assert said(code) == []
