"""`rewrite.accelerate` and `fuse`: the same function of faster layers, from any Keras model."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from groupwise import rewrite
from groupwise.errors import UserError
from groupwise.layers import ChannelShuffle, GroupedConv2D
from tests.rewriting import assert_same, disturbed, images_for, kinds, one_calls, outputs_of, resnext_block

GROUPS, WIDTH = 3, 4  # of the hand-made grouped convolutions
CHANNELS = GROUPS * WIDTH


def model_of(build: Callable[[Any], Any], shape: tuple[int | None, ...] = (8, 6, CHANNELS)) -> keras.Model:
    inputs = keras.Input(shape)
    return disturbed(keras.Model(inputs, build(inputs)))


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


def split_slices(x: Any) -> list[Any]:
    return [x[..., i * WIDTH : (i + 1) * WIDTH] for i in range(GROUPS)]


def split_operation(x: Any) -> list[Any]:
    return ops.split(x, GROUPS, axis=-1)


def split_lambdas(x: Any) -> list[Any]:
    return [layers.Lambda(lambda x, i=i: x[:, :, :, i * WIDTH : (i + 1) * WIDTH])(x) for i in range(GROUPS)]


def split_strided(x: Any) -> list[Any]:
    return [x[..., i::GROUPS] for i in range(GROUPS)]


@pytest.mark.parametrize("split", [split_slices, split_operation, split_lambdas, split_strided])
@pytest.mark.parametrize("with_norms", [False, True])
def test_split_convolve_concatenate_becomes_one_layer(split: Callable[[Any], list[Any]], with_norms: bool) -> None:
    def branch(x: Any) -> Any:
        x = layers.Conv2D(5, 3, 2, padding="same", use_bias=not with_norms)(x)
        return layers.Activation("relu")(layers.BatchNormalization()(x)) if with_norms else x

    model = model_of(lambda x: layers.Concatenate()([branch(part) for part in split(x)]))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    expected = ["PermuteChannels"] * (split is split_strided) + ["GroupedConv2D"] + ["BatchNormalization"] * with_norms
    assert [kind for kind in kinds(fast) if kind != "Activation"] == expected
    grouped = next(layer for layer in fast.layers if type(layer).__name__ == "GroupedConv2D")
    assert (grouped.groups, grouped.filters) == (GROUPS, 5 * GROUPS)


@pytest.mark.parametrize(
    "part", [layers.Rescaling(2.0, offset=1.0), layers.Rescaling(-1.0), layers.GlobalAveragePooling2D()]
)
def test_branches_that_begin_with_no_slices(part: Any) -> None:
    def build(x: Any) -> Any:
        starts = [type(part).from_config({**part.get_config(), "name": f"part{i}"})(x) for i in range(3)]
        images = [y if len(y.shape) == 4 else layers.Reshape((1, 1, CHANNELS))(y) for y in starts]
        return layers.Concatenate()([layers.Conv2D(5, 1)(y) for y in images])

    model = model_of(build)
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert "Concatenate" in [type(layer).__name__ for layer in fast.layers]


def test_looking_for_branches_runs_nothing_with_a_state() -> None:
    noise = layers.GaussianNoise(0.1, seed=1)
    seed = noise.seed_generator.state
    model = model_of(lambda x: layers.Concatenate()([layers.Conv2D(5, 1)(y) for y in [noise(x, training=True)] * 3]))
    before = keras.ops.convert_to_numpy(seed).tolist()
    rewrite.accelerate(model)
    assert keras.ops.convert_to_numpy(seed).tolist() == before


def test_a_shared_or_unequal_branch_is_left() -> None:
    shared = layers.Conv2D(5, 3, padding="same")
    model = model_of(lambda x: layers.Concatenate()([shared(part) for part in split_slices(x)]))
    assert "Concatenate" in kinds(rewrite.accelerate(model))
    assert_same(model, rewrite.accelerate(model))
    sizes = model_of(
        lambda x: ops.concatenate([layers.Conv2D(3 + i, 1)(part) for i, part in enumerate(split_slices(x))], axis=-1)
    )
    assert_same(sizes, rewrite.accelerate(sizes))
    assert "GroupedConv2D" in kinds(rewrite.accelerate(sizes))


def test_a_tensor_that_is_read_elsewhere_stays() -> None:
    inputs = keras.Input((8, 8, CHANNELS))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(inputs))
    model = disturbed(keras.Model(inputs, [x, layers.ReLU()(x)]))
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert "ReLU" in kinds(fast)


MULTIPLIER = 5


def depthwise(x: Any, use_bias: bool = False) -> Any:
    return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=MULTIPLIER, use_bias=use_bias, name="depthwise")(
        x
    )


def sum_by_operation(x: Any) -> Any:
    y = ops.reshape(depthwise(x), (-1, *x.shape[1:3], GROUPS, WIDTH, MULTIPLIER))
    return ops.reshape(ops.sum(y, axis=4), (-1, *x.shape[1:3], GROUPS * MULTIPLIER))


def sum_by_lambda(x: Any) -> Any:
    """As keras-applications wrote its ResNeXt."""
    y = layers.Reshape((*x.shape[1:3], GROUPS, WIDTH, MULTIPLIER))(depthwise(x))
    y = layers.Lambda(lambda y: sum(y[:, :, :, :, i] for i in range(WIDTH)))(y)
    return layers.ReLU()(layers.Reshape((*x.shape[1:3], GROUPS * MULTIPLIER))(y))


def sum_by_slices(x: Any) -> Any:
    y = layers.Reshape((*x.shape[1:3], GROUPS, WIDTH, MULTIPLIER))(depthwise(x, use_bias=True))
    total = y[..., 0, :]
    for i in range(1, WIDTH):
        total = total + y[..., i, :]
    return layers.Reshape((*x.shape[1:3], GROUPS * MULTIPLIER))(total)


def sum_strided(x: Any) -> Any:
    y = layers.Reshape((*x.shape[1:3], WIDTH, GROUPS * MULTIPLIER))(depthwise(x))
    return ops.sum(y, axis=3)


def sum_strided_with_outputs_dealt(x: Any) -> Any:
    y = layers.Reshape((*x.shape[1:3], GROUPS, WIDTH, MULTIPLIER))(depthwise(x))
    y = layers.Permute((1, 2, 5, 3, 4))(y)
    return layers.Reshape((*x.shape[1:3], GROUPS * MULTIPLIER))(ops.sum(y, axis=5))


@pytest.mark.parametrize("build", [sum_by_operation, sum_by_lambda, sum_by_slices])
def test_depthwise_reshape_sum_becomes_one_layer(build: Callable[[Any], Any]) -> None:
    model = model_of(build)
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert kinds(fast)[0] == "GroupedConv2D"
    assert set(kinds(fast)) <= {"GroupedConv2D", "ReLU"}
    assert fast.layers[1].groups == GROUPS
    assert fast.count_params() <= model.count_params()
    assert fast.output_names == model.output_names
    # The depthwise convolution's own outputs are not computed any more.
    assert "depthwise" not in {layer.name for layer in fast.layers}
    assert "depthwise" in {gone.layer for gone in rewrite.report_of(fast).gone}


@pytest.mark.parametrize("build", [sum_strided, sum_strided_with_outputs_dealt])
def test_strided_groups_are_told_apart(build: Callable[[Any], Any]) -> None:
    model = model_of(build)
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert sorted(kinds(fast)) == ["GroupedConv2D", "PermuteChannels"]
    assert "strided" in str(rewrite.report_of(fast))


@pytest.mark.parametrize("build", [sum_strided, sum_strided_with_outputs_dealt])
def test_the_permutation_is_carried_into_the_neighbours(build: Callable[[Any], Any]) -> None:
    def between(x: Any) -> Any:
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(CHANNELS, 1)(x)))
        x = layers.Activation("tanh")(layers.BatchNormalization()(build(x)))
        return layers.Conv2D(7, 3)(x)

    model = model_of(between)
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert "PermuteChannels" not in kinds(fast)


def test_the_wrong_sum_is_named_and_left() -> None:
    def build(x: Any) -> Any:
        y = layers.Reshape((*x.shape[1:3], CHANNELS, MULTIPLIER))(depthwise(x))
        return ops.sum(y, axis=-1)

    model = model_of(build)
    fast = rewrite.accelerate(model)
    assert_same(model, fast)
    assert "DepthwiseConv2D" in kinds(fast)
    assert "no two channels ever meet" in str(rewrite.report_of(fast))


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
    assert str(rewrite.report_of(twice)) == "nothing to rewrite"


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


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = model_of(lambda x: sum_strided(resnext_block(x, CHANNELS, 3, "one")))
    fast = rewrite.accelerate(model)
    fast.save(tmp_path / "fast.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "fast.keras"))


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
