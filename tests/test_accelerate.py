"""`rewrite.accelerate` and `fuse`: the same function of faster layers, from any Keras model."""

from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from groupwise import rewrite
from groupwise.errors import UserError
from groupwise.layers import ChannelShuffle, GroupedConv2D
from tests.frameworks import BACKEND
from tests.rewriting import (
    CHANNELS,
    GROUPS,
    WIDTH,
    assert_same,
    disturbed,
    images_for,
    kinds,
    model_of,
    one_calls,
    outputs_of,
    resnext_block,
)


def test_stock_layers_become_ours() -> None:
    model = model_of(lambda x: resnext_block(resnext_block(x, 24, 4, "one"), 32, 8, "two", 2))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert kinds(fast).count("GroupedConv2D") == 8
    assert kinds(fast).count("BatchNormalization") == 8
    assert [layer.name for layer in fast.layers] == [layer.name for layer in model.layers]
    # Both sums and all ReLUs are done by the batch norms: where both addends are, by the first one.
    calls = list(one_calls(fast).values())
    assert sorted(calls) == ["BatchNormalization, Add, ReLU"] * 2 + ["BatchNormalization, ReLU"] * 4
    assert fast.get_layer("two_spatial").groups == 8
    assert "one_spatial" in str(rewrite.report_of(fast))


def test_a_loss_of_ones_own_is_asked_for_again() -> None:
    model = model_of(lambda x: layers.Conv2D(4, 3, groups=2)(x))
    model.compile("sgd", lambda true, predicted: ops.mean(predicted - true))
    fast = rewrite.accelerate(model)
    assert not fast.compiled or fast.loss is not None
    if not fast.compiled:
        assert "compile the new one yourself" in str(rewrite.report_of(fast))


def test_regularizers_go_along() -> None:
    def build(x: Any) -> Any:
        y = layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, depthwise_regularizer="l2")(x)
        y = layers.Reshape((*y.shape[1:3], GROUPS, WIDTH, 2))(y)
        y = layers.Reshape((*y.shape[1:3], GROUPS * 2))(ops.sum(y, axis=4))
        return layers.Conv2D(4, 3, groups=2, kernel_regularizer="l1")(y)

    model = model_of(build)
    fast = rewrite.accelerate(model)
    assert kinds(fast) == ["GroupedConv2D", "GroupedConv2D"]
    losses = [sum(float(loss) for loss in each.losses) for each in (model, fast)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 0


def test_the_old_model_is_left_alone_and_shares_nothing() -> None:
    model = model_of(lambda x: resnext_block(x, 24, 4, "one"))
    before = [np.array(w) for w in model.get_weights()]
    fast = rewrite.accelerate(model)
    fast.set_weights([w + 1 for w in fast.get_weights()])
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)
    assert set(kinds(model)) == {"Conv2D", "BatchNormalization", "ReLU", "Add"}


def test_it_trains_as_the_old_one() -> None:
    def head(x: Any) -> Any:
        return layers.Dense(3)(layers.GlobalAveragePooling2D()(resnext_block(x, 24, 4, "one")))

    model = model_of(head)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    fast = rewrite.accelerate(model)
    assert fast.compiled
    images, labels = images_for(model, 6)[0], np.array([0, 1, 2, 0, 1, 2])
    losses = [[float(each.train_on_batch(images, labels)) for _ in range(4)] for each in (model, fast)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[0][-1] < losses[0][0]
    assert_same(model, fast)  # moving statistics included


def test_separable_depthwise_and_padding() -> None:
    def build(x: Any) -> Any:
        x = layers.SeparableConv2D(9, 3, padding="same", depth_multiplier=2, activation="relu")(x)
        x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
        x = layers.DepthwiseConv2D(3, 2, use_bias=False, name="strided")(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        return layers.MaxPooling2D(2)(x)

    model = model_of(build, (9, 11, 5))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert kinds(fast) == kinds(model)
    ours = ("SeparableConv2D", "DepthwiseConv2D", "BatchNormalization", "MaxPooling2D")
    assert all(
        type(layer).__module__.startswith("groupwise") == (type(layer).__name__ in ours) for layer in fast.layers
    )
    assert one_calls(fast)["strided"] == "ZeroPadding2D, DepthwiseConv2D"
    assert sorted(one_calls(fast).values())[0] == "BatchNormalization, ReLU"


def test_shared_layers_stay_shared() -> None:
    inputs = [keras.Input((8, 8, 4), name="left"), keras.Input((8, 8, 4), name="right")]
    convolution, norm = layers.Conv2D(4, 3, groups=2, padding="same"), layers.BatchNormalization()
    relu = layers.ReLU()
    model = disturbed(keras.Model(inputs, [relu(norm(convolution(x))) for x in inputs]))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert fast.count_params() == model.count_params()
    assert sorted(kinds(fast)) == ["BatchNormalization", "GroupedConv2D", "ReLU"]


def test_nested_models_and_dictionaries() -> None:
    inner_inputs = keras.Input((8, 8, CHANNELS))
    inner = keras.Model(inner_inputs, resnext_block(inner_inputs, CHANNELS, 3, "inner"), name="inside")
    sequence = keras.Sequential([keras.Input((8, 8, CHANNELS)), layers.Conv2D(4, 3, groups=2)], name="sequence")
    inputs = {"a": keras.Input((8, 8, CHANNELS), name="a"), "b": keras.Input((8, 8, CHANNELS), name="b")}
    shared = inner(inputs["a"]) + inner(inner(inputs["b"]))
    model = disturbed(keras.Model(inputs, {"deep": sequence(shared), "sum": ops.tanh(shared)}))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert fast.count_params() == model.count_params()
    assert kinds(fast.get_layer("inside")).count("GroupedConv2D") == 3
    assert kinds(fast.get_layer("sequence")) == ["GroupedConv2D"]


def test_sequential_models_and_frozen_layers() -> None:
    frozen = layers.Conv2D(6, 3, groups=3, name="frozen")
    model = keras.Sequential([keras.Input((9, 9, 6)), frozen, layers.Conv2D(4, 1), layers.Flatten(), layers.Dense(2)])
    frozen.trainable = False
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert not fast.get_layer("frozen").trainable
    assert len(fast.trainable_weights) == len(model.trainable_weights) == 4


@keras.saving.register_keras_serializable("tests")
class Composite(layers.Layer):
    """A layer of somebody's own, made of Keras's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(6, 3, groups=2, padding="same")
        self.others = [layers.DepthwiseConv2D(3, padding="same"), layers.BatchNormalization()]

    def build(self, input_shape: Any) -> None:
        self.convolution.build(input_shape)
        for other in self.others:
            other.build((*input_shape[:-1], 6))

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = self.others[0](self.convolution(inputs))
        return self.others[1](x, training=training)


def test_layers_within_a_layer_become_ours() -> None:
    model = model_of(lambda x: layers.Conv2D(3, 1)(Composite(name="composite")(x)))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert isinstance(fast.get_layer("composite").convolution, GroupedConv2D)
    assert "composite/conv2d" in str(rewrite.report_of(fast))
    assert "in memory only" in str(rewrite.report_of(fast))


class Doubled(layers.Conv2D):
    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return 2 * super().convolution_op(inputs, kernel)


def test_a_subclass_is_left_and_reported() -> None:
    model = model_of(lambda x: Doubled(4, 1, name="doubled")(x))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert "Doubled may compute something else" in str(rewrite.report_of(fast))


def test_ours_stay_ours_and_a_second_time_changes_nothing() -> None:
    model = model_of(lambda x: ChannelShuffle(3)(resnext_block(x, 24, 4, "one")))
    once = rewrite.accelerate(model)
    twice = rewrite.accelerate(once)
    assert_same(once, twice)
    assert str(rewrite.report_of(twice)).splitlines()[0] == "nothing to rewrite"


def test_the_report_says_which_steps_run() -> None:
    fast = rewrite.accelerate(model_of(lambda x: layers.Conv2D(4, 3, groups=2)(x)))
    assert ("run what is recorded" in str(rewrite.report_of(fast))) == (BACKEND == "torch")

    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    inputs = keras.Input((8, 8, 4))
    fast = rewrite.accelerate(Own(inputs, layers.Conv2D(4, 3, groups=2)(inputs)))
    assert ("train: its train_step is its own" in str(rewrite.report_of(fast))) == (BACKEND == "torch")


def test_channels_first_where_the_framework_can() -> None:
    inputs = keras.Input((6, 8, 8))
    options: dict[str, Any] = {"data_format": "channels_first"}
    x = layers.ZeroPadding2D(1, **options)(inputs)
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3, groups=2, **options)(x))
    model = disturbed(keras.Model(inputs, layers.ReLU()(x)))
    fast = rewrite.accelerate(model)
    arrays = [np.random.default_rng(0).normal(size=(2, 6, 8, 8)).astype("float32")]
    if keras.backend.backend() == "tensorflow":
        pytest.skip(
            "TensorFlow's own convolution knows no channels_first on a CPU, so that there is nothing to compare"
        )
    np.testing.assert_allclose(outputs_of(fast, arrays)[0], outputs_of(model, arrays)[0], rtol=1e-4, atol=1e-5)


def test_a_mean_at_the_edges_stays_what_it_is() -> None:
    model = model_of(lambda x: layers.AveragePooling2D(3, 2, "same", name="pool")(layers.Conv2D(4, 1)(x)), (7, 6, 4))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)


def test_unknown_image_sizes() -> None:
    model = model_of(lambda x: resnext_block(x, 24, 4, "one"), (None, None, CHANNELS))
    assert_same(model, rewrite.accelerate(model))


def test_fuse_changes_no_convolution() -> None:
    model = model_of(lambda x: layers.Conv2D(4, 1, activation="tanh")(resnext_block(x, 24, 4, "one")))
    fused = rewrite.fuse(model)
    assert_same(model, fused)
    assert kinds(fused) == kinds(model)
    assert set(one_calls(fused).values()) == {"BatchNormalization, ReLU", "BatchNormalization, Add, ReLU"}
    assert not any(isinstance(layer, GroupedConv2D) for layer in fused.layers)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            "a.keras",
            r"model='a.keras': must be a .* Keras model; read the file first: `keras.saving.load_model\(",
        ),
        (Path("a.keras"), r"read the file first: `keras.saving.load_model\('a.keras'\)`"),
        (layers.Dense(3, name="dense"), r"model=<Dense name=dense, built=False>: must be .*; make one of the layer"),
        (None, "model=None: must be a functional or sequential Keras model"),
    ],
)
def test_what_is_no_model_is_refused_by_every_rewrite(value: Any, words: str) -> None:
    model = model_of(lambda x: layers.Conv2D(4, 1)(x))
    for use in (
        rewrite.accelerate,
        rewrite.fuse,
        rewrite.fold_batch_norm,
        rewrite.grouped_to_dense,
        rewrite.separable_to_dense,
        partial(rewrite.dense_to_grouped, groups=2),
        partial(rewrite.dense_to_separable, rank=2),
        partial(rewrite.to_form, form="b"),
        partial(rewrite.measure, after=model),
        partial(rewrite.measure, model),
    ):
        with pytest.raises(UserError, match=words):
            use(value)


def test_what_cannot_be_rewritten_is_said() -> None:
    class Own(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    own = Own()
    own(np.zeros((1, 2)))
    with pytest.raises(UserError, match="a method of its own"):
        rewrite.accelerate(own)
    with pytest.raises(UserError, match="not built"):
        rewrite.accelerate(keras.Sequential([layers.Conv2D(4, 3)]))
    with pytest.raises(ValueError, match="there is no report"):
        rewrite.report_of(own)
    unknown = model_of(lambda x: layers.Conv2D(4, 1)(x), (None, None, CHANNELS))
    with pytest.raises(UserError, match="the size must be known to be measured"):
        rewrite.measure(unknown, rewrite.accelerate(unknown))
