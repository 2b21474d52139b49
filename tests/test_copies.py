"""What a rewritten model keeps beside its numbers: class, attributes, state, what is frozen, how it was compiled."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from groupwise import rewrite
from groupwise.errors import UserError
from groupwise.layers import GroupedConv2D
from tests.rewriting import assert_same, difference, disturbed, images_for, outputs_of

EXACT: list[Callable[[keras.Model], keras.Model]] = [rewrite.accelerate, rewrite.fuse, rewrite.fold_batch_norm]


def blocks(x: Any, **options: Any) -> Any:
    x = layers.Conv2D(8, 3, groups=2, name="conv", **options)(x)
    return layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))


def head(x: Any) -> Any:
    return layers.Dense(2, name="head")(layers.GlobalAveragePooling2D(name="pool")(x))


@keras.saving.register_keras_serializable("tests")
class Doubled(keras.Model):
    """A model made functionally, with a loss of its own."""

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *_: Any, **__: Any) -> Any:
        return 2 * ops.mean(ops.square(y - y_pred))


@keras.saving.register_keras_serializable("tests")
class Made(keras.Model):
    """A model that makes its layers by itself, and has attributes of many kinds."""

    def __init__(self, width: int = 8, **keywords: Any) -> None:
        inputs = keras.Input((8, 8, 4), name="image")
        features = blocks(inputs)
        super().__init__(inputs, head(features), **keywords)
        self.width, self.class_names = width, ["ant", "bee"]
        self.features = {"last": features}
        self.last = self.get_layer("head")
        self.tracker = keras.metrics.Mean(name="own")
        self.temperature = keras.Variable(3.0, name="temperature")
        self.seeds = keras.random.SeedGenerator(5)

    def get_config(self) -> dict[str, Any]:
        return {"width": self.width, "name": self.name}


@pytest.mark.parametrize("change", EXACT)
def test_a_class_with_a_loss_of_its_own(change: Any) -> None:
    inputs = keras.Input((8, 8, 4))
    model = disturbed(Doubled(inputs, head(blocks(inputs))))
    model.compile("sgd", "mse")
    new = change(model)
    assert type(new) is Doubled
    images, targets = images_for(model)[0], np.ones((2, 2), "float32")
    expected = 2 * np.mean((outputs_of(model, [images])[0].astype("float64") - targets) ** 2)
    assert new.evaluate(images, targets, verbose=0) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("change", [rewrite.accelerate, rewrite.fuse])
def test_a_class_that_makes_its_layers(change: Any, tmp_path: Any) -> None:
    model = disturbed(Made(name="made"))
    model.tracker.update_state(7.0)
    model.seeds.next()
    new: Any = change(model)
    assert type(new) is Made
    assert (new.width, list(new.class_names)) == (8, ["ant", "bee"])
    assert new.features["last"] is new.get_layer("relu").output
    assert new.last is new.get_layer("head")
    assert new.tracker is not model.tracker
    assert float(new.tracker.result()) == 7.0
    assert new.temperature is not model.temperature
    assert len(new.trainable_variables) == len(model.trainable_variables)
    np.testing.assert_array_equal(*(ops.convert_to_numpy(each.seeds.state) for each in (model, new)))
    # It is saved as the class's own call: what the file says is Keras's own layers, and their weights are found.
    new.save(tmp_path / "made.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "made.keras"))


def test_a_class_that_makes_layers_which_are_others_now_is_named() -> None:
    new = rewrite.fold_batch_norm(disturbed(Made(name="made")))
    assert type(new) is not Made
    assert "the class Made became Model" in str(rewrite.report_of(new))


def test_an_attribute_that_is_a_layer_which_is_gone() -> None:
    inputs = keras.Input((8, 8, 4))
    model = disturbed(Doubled(inputs, head(blocks(inputs))))
    model.parts = [model.get_layer("conv"), model.get_layer("head")]
    model.last, model.inner = model.get_layer("head"), model.get_layer("conv").output
    new: Any = rewrite.fold_batch_norm(model)
    assert new.last is new.get_layer("head")
    assert not hasattr(new, "parts")
    assert not hasattr(new, "inner")
    assert "attribute 'parts' is not there, since conv has become part" in str(rewrite.report_of(new))
    assert len(new.weights) == 4
    clone = keras.models.clone_model(new)
    clone.set_weights(new.get_weights())
    assert_same(model, clone)


def test_a_class_with_a_call_of_its_own_is_refused() -> None:
    class Called(Doubled):
        def call(self, inputs: Any, training: bool | None = None) -> Any:
            return 2 * super().call(inputs, training=training)

    inputs = keras.Input((8, 8, 4))
    with pytest.raises(UserError, match="Called computes in a method of its own"):
        rewrite.accelerate(Called(inputs, head(blocks(inputs))))


@pytest.mark.parametrize("layer", [layers.SpatialDropout2D(0.5), layers.GaussianNoise(0.1), layers.Rescaling(2.0)])
def test_a_policy_that_a_configuration_names_by_a_type(layer: Any) -> None:
    inputs = keras.Input((8, 8, 4))
    mixed = type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})
    new = rewrite.accelerate(keras.Model(inputs, mixed(inputs)))
    assert new.output.dtype == "bfloat16"
    assert new.layers[-1].dtype_policy.name == "mixed_bfloat16"


@pytest.mark.parametrize("change", [rewrite.accelerate, rewrite.fuse])
def test_moving_statistics_in_half_precision_are_said_to_be_wide(change: Any) -> None:
    inputs = keras.Input((4, 4, 4), dtype="bfloat16")
    norm = layers.BatchNormalization(dtype="bfloat16", name="norm")
    new = change(keras.Model(inputs, layers.ReLU(dtype="bfloat16")(norm(inputs))))
    assert keras.backend.standardize_dtype(new.get_layer("norm").moving_mean.dtype) == "float32"
    assert "half-precision batch norms are float32" in str(rewrite.report_of(new))


def test_what_cannot_be_copied_is_named() -> None:
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, head(blocks(inputs)))
    model.stream = open(__file__)  # noqa: SIM115, PTH123
    with pytest.raises(UserError, match="attribute 'stream' of type TextIOWrapper cannot be copied"):
        rewrite.accelerate(model)
    model.stream.close()


@pytest.mark.parametrize("change", EXACT)
def test_outputs_are_called_what_they_were(change: Any) -> None:
    inputs = {"b": keras.Input((8, 8, 4), name="b"), "a": keras.Input((8, 8, 4), name="a")}
    first = layers.Activation("relu", name="heat")(layers.Conv2D(3, 1, name="conv_a")(inputs["a"]))
    second = ops.relu(layers.BatchNormalization(name="norm_b")(layers.Conv2D(3, 1, name="conv_b")(inputs["b"])))
    model = disturbed(keras.Model(inputs, {"heat": first, "mask": [second, inputs["a"]]}))
    new = change(model)
    assert new.output_names == model.output_names
    assert [x.name for x in new.inputs] == [x.name for x in model.inputs]
    shapes = [keras.tree.map_structure(lambda x: (x.shape, x.dtype), each.output) for each in (model, new)]
    assert shapes[0] == shapes[1]
    assert_same(model, new)


def test_a_type_is_kept_and_where_it_changes() -> None:
    for policy in ("mixed_float16", "mixed_bfloat16"):
        inputs = keras.Input((8, 8, 4), dtype="uint8", name="image")
        x = layers.Rescaling(1 / 255, dtype=policy)(inputs)
        x = layers.BatchNormalization(dtype="float32")(layers.Conv2D(8, 3, dtype=policy)(x))
        model = keras.Model(inputs, layers.Activation("relu", dtype="float64")(layers.ReLU(dtype=policy)(x)))
        for change in EXACT:
            new = change(model)
            assert [x.dtype for x in new.inputs + new.outputs] == ["uint8", "float64"]
            assert [layer.dtype_policy.name for layer in new.layers] == [
                layer.dtype_policy.name for layer in model.layers
            ]
        assert "computes in float32" in str(rewrite.report_of(new))


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A layer of layers, in a list and alone, with a number that its configuration does not have."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.convolutions = [layers.Conv2D(4, 3, padding="same", groups=g) for g in (1, 2)]
        self.norm, self.dropout = layers.BatchNormalization(), layers.Dropout(0.5, seed=3)
        self.factor = 1.0

    def build(self, shape: Any) -> None:
        for convolution in self.convolutions:
            convolution.build(shape)
        self.norm.build(shape)

    def call(self, x: Any, training: bool | None = None) -> Any:
        for convolution in self.convolutions:
            x = convolution(x)
        return self.dropout(self.factor * self.norm(x, training=training), training=training)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


@pytest.mark.parametrize("change", [*EXACT, rewrite.grouped_to_dense, lambda model: rewrite.to_form(model, "b")])
def test_layers_within_a_layer_keep_all(change: Any, tmp_path: Any) -> None:
    inputs = keras.Input((6, 6, 4))
    block = Block(name="block")
    model = disturbed(keras.Model(inputs, block(inputs)))
    block.norm.trainable, block.factor = False, 2.0
    block.convolutions[1].kernel.regularizer = keras.regularizers.L2(0.5)
    block.convolutions[0].dtype_policy = "mixed_bfloat16"
    block.dropout.seed_generator.next()
    fast = rewrite.accelerate(model)
    for new in (change(model), change(fast)):
        made = new.get_layer("block")
        assert [layer.trainable for layer in made._flatten_layers()] == [
            layer.trainable for layer in block._flatten_layers()
        ]
        assert [v.trainable for v in made.variables] == [v.trainable for v in block.variables]
        assert made.convolutions[0].dtype_policy.name == "mixed_bfloat16"
        assert sum(map(float, new.losses)) == pytest.approx(sum(map(float, model.losses)))
        np.testing.assert_array_equal(*(ops.convert_to_numpy(b.dropout.seed_generator.state) for b in (made, block)))
        assert difference(model, new) < 0.02
    # No rewrite loses the layers that are ours within it, and a file holds Keras's.
    assert isinstance(made.convolutions[1], GroupedConv2D)
    made.factor = 1.0
    new.save(tmp_path / "block.keras")
    assert difference(new, keras.saving.load_model(tmp_path / "block.keras")) < 0.02


def test_what_layers_learnt_beside_weights() -> None:
    image, number = keras.Input((6, 6, 4), name="image"), keras.Input((1,), dtype="int64", name="number")
    normalised = layers.Normalization(name="normalised")
    lookup, bins = layers.IntegerLookup(name="lookup", output_mode="one_hot"), layers.Discretization(num_bins=3)
    normalised.adapt(np.random.default_rng(0).normal(3, 2, (8, 6, 6, 4)))
    lookup.adapt(np.array([[7], [7], [9]]))
    bins.adapt(np.arange(30.0).reshape(30, 1))
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(normalised(image)))
    outputs = [pooled, lookup(number), bins(pooled)]
    model = keras.Model([image, number], outputs)
    new = rewrite.accelerate(model)
    assert new.get_layer("lookup").get_vocabulary() == lookup.get_vocabulary()
    given = [np.random.default_rng(1).normal(size=(2, 6, 6, 4)).astype("float32"), np.array([[7], [9]])]
    for before, after in zip(model(given), new(given), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(after), ops.convert_to_numpy(before), atol=1e-5)


def test_compiled_alike_with_the_optimizer_as_it_stands() -> None:
    inputs = keras.Input((8, 8, 4))
    model = disturbed(keras.Model(inputs, {"a": head(blocks(inputs)), "b": layers.Flatten(name="b")(inputs)}))

    def own(true: Any, predicted: Any) -> Any:
        return ops.mean(ops.abs(true - predicted))

    losses = {"a": own, "b": keras.losses.MeanSquaredError()}
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = keras.optimizers.Adam(schedule, clipnorm=1.0)
    metrics = {"a": [keras.metrics.MeanAbsoluteError(name="mae")]}
    model.compile(optimizer, losses, loss_weights={"a": 2.0, "b": 0.5}, metrics=metrics)
    images = images_for(model, 4)[0]
    targets = {"a": np.ones((4, 2), "float32"), "b": np.zeros((4, 256), "float32")}
    for _ in range(3):
        model.train_on_batch(images, targets)
    new = rewrite.accelerate(model)
    assert int(new.optimizer.iterations) == 3
    model.reset_metrics()  # of the first steps; the new model's are as before any
    steps = [[each.train_on_batch(images, targets, return_dict=True) for _ in range(3)] for each in (model, new)]
    for before, after in zip(*steps, strict=True):
        # Keras 3.12 gives arrays.
        assert {name: float(value) for name, value in after.items()} == pytest.approx(
            {name: float(value) for name, value in before.items()}, rel=1e-3
        )
    assert "compile" not in str(rewrite.report_of(new))


@keras.saving.register_keras_serializable("tests")
class Cubes(keras.regularizers.Regularizer):
    def __call__(self, kernel: Any) -> Any:
        return ops.sum(ops.abs(kernel) ** 3)

    def get_config(self) -> dict[str, Any]:
        return {}


def test_penalties_stay_what_they_are() -> None:
    inputs = keras.Input((8, 8, 4))
    options = {"kernel_regularizer": "l2", "bias_regularizer": keras.regularizers.L1(0.1)}
    x = layers.Conv2D(8, 3, groups=2, name="conv", **options)(inputs)
    x = layers.BatchNormalization(gamma_regularizer="l1", name="norm")(x)
    x = layers.ReLU(activity_regularizer="l2")(x)
    x = layers.DepthwiseConv2D(3, depthwise_regularizer=keras.regularizers.L1L2(0.1, 0.2))(x)
    x = layers.Conv2D(4, 1, kernel_regularizer=Cubes(), name="mixed")(x)
    model = disturbed(keras.Model(inputs, layers.SeparableConv2D(4, 3, pointwise_regularizer="l2", name="sep")(x)))
    images = images_for(model)[0]
    model(images)
    expected = sum(map(float, model.losses))
    for change in (*EXACT, rewrite.grouped_to_dense):
        new = change(model)
        new(images)
        assert sum(map(float, new.losses)) == pytest.approx(expected, rel=1e-5)
    # Of another kernel the same power is another penalty.
    assert "without its pointwise_regularizer" in str(rewrite.report_of(rewrite.separable_to_dense(model)))


def test_functions_that_no_file_could_name() -> None:
    class Own(keras.regularizers.Regularizer):
        def __call__(self, kernel: Any) -> Any:
            return ops.sum(ops.abs(kernel))

        def get_config(self) -> dict[str, Any]:
            return {}

    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, activation=lambda y: 2 * y, kernel_regularizer=Own(), name="conv")(inputs)
    model = disturbed(keras.Model(inputs, layers.Lambda(lambda y, by: y * by, arguments={"by": 3.0}, name="by")(x)))
    for change in EXACT:
        new = change(model)
        assert_same(model, new)
        assert sum(map(float, new.losses)) == pytest.approx(sum(map(float, model.losses)))


def test_a_sequence_stays_one() -> None:
    model = disturbed(
        keras.Sequential(
            [keras.Input((8, 8, 4)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()],
            name="sequence",
        )
    )
    for change in EXACT:
        new = change(model)
        assert type(new) is keras.Sequential
        assert_same(model, new)
        middle = keras.Model(new.inputs[0], new.layers[-2].output)
        assert middle(images_for(model)[0]).shape == (2, 6, 6, 4)
    new.add(layers.Dense(3))
    assert new.output_shape == (None, 3)
