"""What somebody sets on a model's parts after they were made, or shares between them, goes along in every rewrite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from groupwise import rewrite
from groupwise.errors import UserError
from tests.rewriting import assert_same, difference, disturbed, images_for

EXACT: list[Callable[[keras.Model], keras.Model]] = [rewrite.accelerate, rewrite.fuse, rewrite.fold_batch_norm]


def image(*shape: int, **options: Any) -> Any:
    return keras.Input(shape or (9, 8, 4), **options)


@keras.saving.register_keras_serializable("tests")
class Shifted(layers.Layer):
    """Adds a tensor to what a function makes of the inputs, both its own."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.factor: float = 1.0
        self.shift, self.function = ops.zeros((4,)), lambda x: x * self.factor

    def call(self, inputs: Any) -> Any:
        return self.function(inputs) + self.shift


@pytest.mark.parametrize(("name", "value"), [("shift", [1.0, 2, 3, 4]), ("function", ops.abs), ("factor", 3.0)])
def test_tensors_functions_and_numbers_of_a_layer(name: str, value: Any) -> None:
    inputs, shifted = image(), Shifted()
    model = disturbed(keras.Model(inputs, shifted(layers.Conv2D(4, 3, groups=2)(inputs))))
    setattr(shifted, name, ops.convert_to_tensor(value) if isinstance(value, list) else value)
    assert_same(model, rewrite.accelerate(model))


def test_boundaries_that_were_learnt_before_the_model_was_saved(tmp_path: Path) -> None:
    inputs, buckets = image(), layers.Discretization(num_bins=4, name="buckets")
    buckets.adapt(np.arange(100.0, dtype="float32"))
    keras.Model(inputs, buckets(inputs)).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for change in EXACT:
        new = change(loaded)
        assert new.get_layer("buckets").bin_boundaries == pytest.approx(loaded.get_layer("buckets").bin_boundaries)
        assert len(new.get_layer("buckets").bin_boundaries) == 3


@pytest.mark.parametrize("change", EXACT)
def test_the_first_call_of_a_shared_layer_stays_the_first(change: Any) -> None:
    first, second, shared = image(name="first"), image(name="second"), layers.Conv2D(4, 3, name="shared")
    called = shared(first)
    model = keras.Model([first, second], layers.Subtract()([shared(second), called]))
    new = change(model)
    assert new.get_layer("shared").input.name == "first"
    assert_same(model, new)


@pytest.mark.parametrize("is_model", [False, True])
def test_a_layer_that_is_part_of_two_is_refused(is_model: bool) -> None:
    images, films, shared = image(), image(3, 9, 8, 4), layers.Conv2D(4, 3, name="shared")
    inner: Any = shared
    if is_model:
        inputs = image()
        inner = keras.Model(inputs, shared(inputs), name="shared")
    model = keras.Model([images, films], [inner(images), layers.TimeDistributed(inner, name="each")(films)])
    with pytest.raises(UserError, match="layer 'shared': it is part of 'each' and used elsewhere too"):
        rewrite.accelerate(model)


def test_a_model_within_a_wrapper_can_be_saved_and_rewritten_again(tmp_path: Path) -> None:
    inputs, films = image(), image(3, 9, 8, 4)
    inner = keras.Model(inputs, layers.ReLU()(layers.Conv2D(4, 3)(inputs)))
    inner.compile("adam", "mse")
    model = keras.Model(films, layers.TimeDistributed(inner)(films))
    for change in EXACT:
        new = rewrite.accelerate(change(model))
        new.save(tmp_path / "model.keras")
        arrays = np.random.default_rng(0).normal(size=(2, 3, 9, 8, 4)).astype("float32")
        expected = ops.convert_to_numpy(model(arrays))
        np.testing.assert_allclose(ops.convert_to_numpy(new(arrays)), expected, atol=1e-5)


def small(**options: Any) -> tuple[keras.Model, Any]:
    inputs, convolution = image(), layers.Conv2D(4, 3, name="conv", padding="same", **options)
    return keras.Model(inputs, convolution(inputs)), convolution


def test_a_variable_that_is_frozen_or_penalised_by_itself_keeps_its_layer() -> None:
    model, convolution = small(groups=2)
    convolution.kernel.trainable = False
    convolution.bias.regularizer = keras.regularizers.L2(1.0)
    convolution.bias.assign([1.0] * 4)
    for change in (rewrite.accelerate, rewrite.grouped_to_dense):
        new = change(model)
        assert len(new.trainable_variables) == 1
        assert float(sum(new.losses)) == 4.0
    assert "its kernel is frozen, or trained, by itself" in str(rewrite.report_of(rewrite.grouped_to_dense(model)))


def test_branches_of_which_a_kernel_is_frozen_are_left() -> None:
    inputs = image()
    ends = [layers.Conv2D(3, 3, name=f"part{i}")(part) for i, part in enumerate(ops.split(inputs, 2, axis=-1))]
    model = keras.Model(inputs, layers.Concatenate()(ends))
    model.get_layer("part1").kernel.trainable = False
    new = rewrite.accelerate(model)
    assert [len(each.trainable_variables) for each in (model, new)] == [3, 3]


@pytest.mark.parametrize("change", [rewrite.grouped_to_dense, rewrite.separable_to_dense, rewrite.fold_batch_norm])
def test_functions_that_no_file_could_name_go_into_other_layers(change: Any) -> None:
    inputs = image()
    x = layers.Conv2D(4, 3, groups=2, activation=lambda x: ops.tanh(x))(inputs)
    x = layers.SeparableConv2D(4, 3, activation=lambda x: ops.sin(x))(x)
    x = layers.DepthwiseConv2D(3, depthwise_initializer=lambda shape, dtype: ops.ones(shape, dtype))(x)
    model = disturbed(keras.Model(inputs, layers.BatchNormalization()(x)))
    assert_same(model, change(model))


def test_what_joined_layers_are_set_to_afterwards() -> None:
    inputs = image()
    model = disturbed(keras.Model(inputs, layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="conv")(inputs))))
    fast = rewrite.fuse(model)
    assert_same(model, fast)
    for each in (model, fast):
        each.get_layer("conv").activation = keras.activations.tanh
    assert_same(model, fast)
    for each in (model, fast):
        each.get_layer("conv").activation = keras.activations.linear
        each.get_layer("relu").activity_regularizer = keras.regularizers.L2(1.0)
    arrays = images_for(model)[0]
    penalties = [float(sum(each.losses)) for each in (model, fast) if each(arrays) is not None]
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-4)
    assert penalties[0] > 0
    for each in (model, fast):
        each.get_layer("relu").activity_regularizer = None
        each.get_layer("relu").call = lambda x: x - 1
    assert_same(model, fast)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="hooks are PyTorch's")
@pytest.mark.parametrize("kind", ["register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_of_joined_layers_are_called(kind: str) -> None:
    inputs = image()
    model = keras.Model(inputs, layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="conv")(inputs)))
    fast = rewrite.fuse(model)
    called: list[int] = []
    getattr(fast.get_layer("relu"), kind)(lambda *_: called.append(1))
    fast(images_for(model)[0]).sum().backward()
    assert called == [1]


def test_what_an_optimizer_leaves_out_of_its_weight_decay() -> None:
    model, convolution = small(groups=2)
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[convolution.kernel], var_names=["bias"])
    model.compile(optimizer, "mse")
    new = rewrite.accelerate(model)
    new.optimizer.build(new.trainable_variables)
    assert [new.optimizer._use_weight_decay(variable) for variable in new.trainable_variables] == [False, False]
    dense = rewrite.grouped_to_dense(model)
    dense.optimizer.build(dense.trainable_variables)
    assert [dense.optimizer._use_weight_decay(variable) for variable in dense.trainable_variables] == [True, False]
    assert "weight decay leaves out no single variables" in str(rewrite.report_of(dense))


def test_a_frozen_model_within_goes_on_learning_by_itself() -> None:
    inputs, (judge, _) = image(), small()
    judge.compile("adam", "mse")
    arrays = images_for(judge)[0]
    judge.train_on_batch(arrays, arrays)
    judge.trainable = False
    model = keras.Model(inputs, judge(layers.Conv2D(4, 3, padding="same")(inputs)))
    model.compile("adam", "mse")
    inner = rewrite.accelerate(model).layers[-1]
    assert [v.shape for v in inner.optimizer.variables] == [v.shape for v in judge.optimizer.variables]
    for each in (judge, inner):
        each.trainable = True
        each.train_on_batch(arrays, arrays)
    assert difference(judge, inner) <= 1e-4


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.Model):
    """A model with a loss of its own that reads an attribute."""

    def scaled_error(self, true: Any, predicted: Any) -> Any:
        return self.scale * ops.mean(ops.square(true - predicted))


def test_a_loss_that_is_a_method_is_the_new_models(tmp_path: Path) -> None:
    inputs = image()
    model = Scaled(inputs, layers.Conv2D(4, 3, padding="same")(inputs))
    model.scale = 1.0
    model.compile("sgd", loss=model.scaled_error)
    new: Any = rewrite.accelerate(model)
    new.scale = 0.0
    arrays = images_for(model)[0]
    assert new.evaluate(arrays, arrays, verbose=0) == 0
    assert model.evaluate(arrays, arrays, verbose=0) > 0


def test_models_within_are_compiled_alike_and_after_saving_in_hdf5_too(tmp_path: Path) -> None:
    inputs, (inner, _) = image(), small()
    inner.compile("adam", "mse")
    model = keras.Model(inputs, layers.ReLU()(inner(inputs)))
    model.compile("sgd", "mae")
    model.save(tmp_path / "model.h5")
    new = rewrite.accelerate(model)
    assert isinstance(new.optimizer, keras.optimizers.SGD)
    assert isinstance(new.layers[1].optimizer, keras.optimizers.Adam)
    assert new.layers[1].loss == "mse"
    assert difference(model, new) <= 1e-5
