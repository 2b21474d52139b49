"""Every rewrite keeps all that a drawn model means; `python -m tests.drawn_rewrites` tries any number of them."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import pytest
from keras import layers

from tests.drawn_models import build, draw
from tests.drawn_rewrites import failures
from tests.meaning import differences

COUNT = int(os.environ.get("GROUPWISE_DRAWN_MODELS", "24"))


@pytest.fixture(autouse=True)
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("seed", range(COUNT))
@pytest.mark.shared
def test_every_rewrite_keeps_what_a_drawn_model_means(seed: int) -> None:
    found = [f"{name}: {difference}" for name, difference in failures(draw(seed))]
    assert not found, f"{draw(seed)}\n" + "\n".join(found)


@pytest.mark.parametrize("seed", [7, 28])
@pytest.mark.shared
def test_a_model_that_is_drawn_twice_means_the_same(seed: int) -> None:
    model = build(draw(seed))
    assert differences(model, build(draw(seed)), is_thorough=True) == []


def plain() -> keras.Model:
    """Return a model with something of each kind that can be lost."""
    keras.utils.set_random_seed(1)
    keras.backend.clear_session(free_memory=False)  # names count from the beginning
    inputs = {"image": keras.Input((4, 4, 2), name="image"), "number": keras.Input((1,), name="number")}
    x = layers.Conv2D(3, 3, name="convolution", kernel_regularizer="l2", kernel_constraint="max_norm")(inputs["image"])
    inner_inputs = keras.Input((2, 2, 3))
    inner = keras.Model(inner_inputs, layers.BatchNormalization(name="norm")(inner_inputs), name="inner")
    x = layers.Flatten(name="flat")(layers.Dropout(0.5, seed=1, name="noise")(inner(x)))
    number = layers.Discretization([0.0, 1.0], name="buckets")(inputs["number"])
    model = keras.Model(inputs, {"flat": x, "number": layers.CategoryEncoding(3, name="code")(number)})
    model.compile("sgd", {"flat": "mse", "number": "mae"})
    model.labels = ["ant", "bee"]
    return model


def _with_another_vocabulary(model: keras.Model) -> None:
    model.get_layer("buckets").bin_boundaries = [0.0, 2.0]


def _with_another_type(model: keras.Model) -> None:
    model.get_layer("flat").dtype_policy = keras.DTypePolicy("mixed_bfloat16")


def _with_another_seed(model: keras.Model) -> None:
    model.get_layer("noise").seed_generator.state.assign([9, 9])


CHANGES: dict[str, Callable[[keras.Model], Any]] = {
    "class": lambda model: setattr(model, "__class__", type("Other", (type(model),), {})),
    "trainable: inner/norm": lambda model: setattr(model.get_layer("inner").get_layer("norm"), "trainable", False),
    "result": lambda model: model.get_layer("inner").get_layer("norm").moving_mean.assign([1, 2, 3]),
    "penalty: kernel": lambda model: setattr(model.get_layer("convolution").kernel, "regularizer", None),
    "constraint: convolution": lambda model: setattr(model.get_layer("convolution").kernel, "constraint", None),
    "policy: flat": _with_another_type,
    "state: buckets": _with_another_vocabulary,
    "state: noise": _with_another_seed,
    "compiled: loss": lambda model: model.compile("sgd", "mse"),
    "compiled: optimizer": lambda model: model.compile("adam", {"flat": "mse", "number": "mae"}),
    "attribute:  labels": lambda model: delattr(model, "labels"),
    "settings: noise": lambda model: setattr(model.get_layer("noise"), "rate", 0.25),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_lost_is_seen(kind: str) -> None:
    before, after = plain(), plain()
    assert differences(before, after) == []
    CHANGES[kind](after)
    assert any(difference.startswith(kind) for difference in differences(before, after))


def test_names_that_are_lost_are_seen() -> None:
    def named(*names: str) -> keras.Model:
        inputs = keras.Input((4,), name=names[0])
        return keras.Model(inputs, [layers.ReLU(name=names[1])(inputs), layers.Dense(2, "relu", name="dense")(inputs)])

    found = differences(named("x", "relu"), named("y", "other"), leave=("result", "value"))
    assert {"name: x: gone", "name: relu: gone"} <= set(found)
    assert any("output_names" in difference for difference in found)
