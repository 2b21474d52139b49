"""What runs as one call: the model's own graph stays, with every layer, its value and its gradient."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from groupwise import rewrite
from tests.rewriting import assert_same, disturbed, images_for, kinds, one_calls, outputs_of


def model() -> keras.Model:
    """A batch norm with a shortcut and ReLU, a convolution that is padded before and followed by ReLU6."""
    inputs = keras.Input((7, 6, 4), name="image")
    x = layers.Conv2D(4, 1, use_bias=False, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.Add(name="sum")([layers.BatchNormalization(name="norm")(x), inputs]))
    x = layers.ZeroPadding2D(((0, 1), (1, 0)), name="pad")(x)
    x = layers.ReLU(6.0, name="relu6")(layers.DepthwiseConv2D(3, 2, name="depthwise")(x))
    return disturbed(keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))))


def test_calls_run_as_one_and_every_layer_stays() -> None:
    old = model()
    fast = rewrite.accelerate(old)
    assert_same(old, fast)
    assert kinds(fast).count("ReLU") == 2
    assert one_calls(fast) == {
        "norm": "BatchNormalization, Add, ReLU",
        "depthwise": "ZeroPadding2D, DepthwiseConv2D, ReLU",
    }
    # A layer that is part of another's call is not called by itself.
    original: Any = layers.ReLU.call
    called: list[str] = []

    def counted(self: Any, x: Any) -> Any:
        called.append(self.name)
        return original(self, x)

    try:
        layers.ReLU.call = counted
        fast(images_for(old)[0])
        assert called == []
        keras.Model(fast.input, fast.get_layer("relu").output)(images_for(old)[0])
        assert called == ["relu"]
    finally:
        layers.ReLU.call = original


def test_every_activation_of_the_core_joins() -> None:
    x = inputs = keras.Input((7, 6, 4))
    for number, after in enumerate((layers.Activation("swish"), layers.Activation("hard_swish"), ops.silu)):
        x = after(layers.Conv2D(4, 3, padding="same", name=f"conv{number}")(x))
    old = disturbed(keras.Model(inputs, ops.hard_silu(layers.BatchNormalization(name="norm")(x))))
    fast = rewrite.fuse(old)
    assert_same(old, fast)
    assert one_calls(fast) == {
        "conv0": "GroupedConv2D, Activation",
        "conv1": "GroupedConv2D, Activation",
        "conv2": "GroupedConv2D, Silu",
        "norm": "BatchNormalization, HardSilu",
    }


@pytest.mark.parametrize("change", [rewrite.accelerate, rewrite.fuse, rewrite.fold_batch_norm])
def test_every_layer_gives_its_value(change: Any) -> None:
    old = model()
    new = change(old)
    gone = {gone.layer for gone in rewrite.report_of(new).gone}
    assert gone == ({"conv"} if change is rewrite.fold_batch_norm else set())
    names = [layer.name for layer in old.layers if layer.name not in gone]
    assert [layer.name for layer in new.layers] == names
    arrays = images_for(old)
    both = [keras.Model(each.input, [each.get_layer(name).output for name in names]) for each in (old, new)]
    for name, before, after in zip(names, *(outputs_of(each, arrays) for each in both), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5, err_msg=name)


def test_what_is_changed_afterwards_is_seen() -> None:
    old = model()
    fast = rewrite.fuse(old)
    for each in (old, fast):
        each.get_layer("relu6").max_value = 0.25
    assert_same(old, fast)
    arrays = images_for(old)
    assert np.abs(outputs_of(fast, arrays)[0] - outputs_of(model(), arrays)[0]).max() > 1e-3


def test_calls_that_must_be_apart() -> None:
    """A value that is penalised, of another type, or read twice."""
    inputs = keras.Input((6, 6, 4))
    penalised = layers.ReLU()(layers.BatchNormalization(activity_regularizer="l2")(inputs))
    typed = layers.Activation("relu", dtype="float16")(layers.BatchNormalization()(penalised))
    x = layers.BatchNormalization(dtype="float32")(typed)
    read_twice = layers.Add()([layers.ReLU()(x), x])
    old = disturbed(keras.Model(inputs, layers.ReLU(activity_regularizer="l1")(read_twice)))
    fast = rewrite.accelerate(old)
    assert one_calls(fast) == {}
    arrays = images_for(old)
    np.testing.assert_allclose(outputs_of(fast, arrays)[0], outputs_of(old, arrays)[0], rtol=1e-3, atol=1e-3)
    old(arrays[0])
    fast(arrays[0])
    assert sum(map(float, fast.losses)) == pytest.approx(sum(map(float, old.losses)), rel=1e-3)


def test_a_rewrite_of_a_joined_model_joins_too(tmp_path: Any) -> None:
    fast = rewrite.accelerate(model())
    assert one_calls(rewrite.grouped_to_dense(fast, "nothing")) == one_calls(fast)
    # A file has the layers as they are; what runs as one is decided in memory.
    fast.save(tmp_path / "fast.keras")
    loaded = keras.saving.load_model(tmp_path / "fast.keras")
    assert one_calls(loaded) == {}
    assert_same(fast, loaded)
    assert one_calls(rewrite.fuse(loaded)) == one_calls(fast)
    assert kinds(keras.models.clone_model(fast)) == kinds(fast)
