"""JAX: XLA's memory of a step stays for the next one, and is no more than it was."""

import json
import sys
from typing import Any

import pytest

from tests.frameworks import BACKEND, in_new_process, needs_core

pytestmark = [
    pytest.mark.skipif(BACKEND != "jax", reason="XLA's memory, on JAX"),
    pytest.mark.skipif(sys.platform != "linux", reason="of glibc"),
    needs_core,
]

START = """
import ctypes, json, os, resource, threading, time
import jax, keras, numpy as np
from groupwise import layers
from groupwise.core import library
from groupwise.models import steps

keras.utils.set_random_seed(1)
binding = ctypes.CDLL(str(library.path("groupwise_jax")))
binding.gw_jax_kept_memory.restype = ctypes.c_int64

def kept(awaits=False):
    # XLA gives memory back a moment after the results are there.
    for _ in range(200 * awaits):
        if binding.gw_jax_kept_memory():
            break
        time.sleep(0.05)
    return binding.gw_jax_kept_memory()

def made():
    inputs = keras.Input((None, None, 8))
    x = inputs
    for _ in range(3):
        x = layers.GroupedConv2D(16, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    model.compile("sgd", "mse")
    steps.run_recorded(model)
    return model

def images(size, batch=4):
    return np.random.default_rng(size).normal(size=(batch, size, size, 8)).astype("float32")

def train(model, size, steps=3):
    return [float(model.train_on_batch(images(size), np.ones((4, 2), "float32"))) for _ in range(steps)]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def faults(model, size):
    given = images(size), np.ones((4, 2), "float32")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model.train_on_batch(*given)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def said(code: str, **environment: str) -> Any:
    """Return what a process of its own prints last, as JSON."""
    done = in_new_process(START + code, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_step_finds_the_memory_of_the_one_before() -> None:
    code = """
model = made()
losses = train(model, 224, 5)
keeps = os.environ.get("GROUPWISE_KEEP_MEMORY") != "0"
found = {"losses": losses, "kept": kept(awaits=keeps), "faults": min(faults(model, 224) for _ in range(5))}
time.sleep(1)
library.release_memory()
print(json.dumps({**found, "released": kept(), "on": train(model, 224, 1)}))
"""
    keeps, not_so = said(code), said(code, GROUPWISE_KEEP_MEMORY="0")
    assert keeps["kept"] > 32 << 20
    assert keeps["faults"] < not_so["faults"] / 2
    assert keeps["released"] == not_so["kept"] == 0
    assert keeps["losses"] + keeps["on"] == not_so["losses"] + not_so["on"]  # to the bit


def test_steps_of_many_sizes_need_no_more_memory_than_without() -> None:
    code = """
model = made()
for size in (160, 192, 160):
    train(model, size, 2)
    model.predict_on_batch(images(size))
print(json.dumps(peak()))
"""
    assert said(code) < said(code, GROUPWISE_KEEP_MEMORY="0") + (48 << 20)


def test_several_threads_share_what_is_kept() -> None:
    code = """
model = made()
sizes = (192, 224, 256)
wanted = {size: model.predict_on_batch(images(size, 12)) for size in sizes}
right = []

def predict(size):
    for _ in range(8):
        right.append(bool((model.predict_on_batch(images(size, 12)) == wanted[size]).all()))

threads = [threading.Thread(target=predict, args=(size,)) for size in sizes]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([kept(awaits=True) > 0, *right]))
"""
    assert said(code) == [True] * 25


def test_what_is_asked_for_once_is_not_kept() -> None:
    code = """
before = kept()
train(made(), 64, 1)  # the binding looks at XLA's memory from its first large result on
train(made(), 96, 1)
large = jax.numpy.ones((64, 1 << 20))
large.block_until_ready()
del large
print(json.dumps([before, kept()]))
"""
    before, after = said(code)
    assert before == 0
    assert after < 64 << 20
