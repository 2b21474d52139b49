"""ResNeXt's three forms: the same function, weights carried from any to any."""

import functools
import operator
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models, rewrite
from groupwise.models.network import without_values
from groupwise.models.residual import FORMS
from tests import peers
from tests.rewriting import assert_same, disturbed

ONE_BLOCK: dict[str, Any] = {"input_shape": (32, 32, 3), "depths": [1], "cardinality": 4, "width": 8}
SMALL: dict[str, dict[str, Any]] = {
    "resnext14_16x4d": {"input_shape": (48, 48, 3)},
    "resnext20_16x4d_cifar10": {"input_shape": (16, 16, 3)},
    "seresnext50_32x4d": ONE_BLOCK,
    "senet16": ONE_BLOCK,
}
"""14- and 20-layer networks and, with squeeze-and-excitation, the beginning of larger ones; all on small images."""

# JAX compiles every operation for every shape, a minute for this one.
QUICK = set(SMALL) - ({"resnext14_16x4d"} if keras.backend.backend() == "jax" else set())


def trained(name: str, **arguments: Any) -> tuple[models.Network, Any]:
    """Return a network after three steps of training, and the images that it was trained on."""
    model = models.create(name, num_classes=10, **arguments)
    generator = np.random.default_rng(0)
    images = generator.normal(1.0, 2.0, size=(8, *model.input_shape[1:])).astype("float32")
    labels = generator.integers(10, size=8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    for _ in range(3):
        model.train_on_batch(images, labels)
    return model, images


def logits(model: models.Network, images: Any) -> Any:
    return keras.ops.convert_to_numpy(model(images, training=False))


def images_of(model: keras.Model) -> Any:
    return np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")


def relative_difference(first: Any, second: Any) -> float:
    return float(np.abs(first - second).max() / np.abs(first).max())


@pytest.mark.parametrize("name", peers.slow_unless(QUICK, SMALL))
def test_forms_agree_after_training(name: str) -> None:
    model, images = trained(name, **SMALL[name])
    norm = model.get_layer("stage1_unit1_expand_bn")
    assert np.abs(keras.ops.convert_to_numpy(norm.moving_mean)).max() > 1e-3
    expected = logits(model, images)
    for form in FORMS:
        converted = rewrite.to_form(model, form)
        assert converted.architecture["form"] == form
        with without_values():
            made = models.create(name, num_classes=10, form=form, **SMALL[name])
        assert converted.count_params() == made.count_params()
        assert relative_difference(expected, logits(converted, images)) <= 1e-5


def test_any_form_to_any_form_keeps_every_weight() -> None:
    model, _ = trained("seresnext50_32x4d", **ONE_BLOCK)
    converted = model
    for form in "aabbacbcc":  # from c: each of the nine pairs once
        converted = rewrite.to_form(converted, form)
    for ours, theirs in zip(converted.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_forms_have_the_papers_layers() -> None:
    arguments: dict[str, Any] = {"cardinality": 4, "width": 8, "include_top": False}
    with without_values():
        built = [models.create("resnext20_16x4d_cifar10", form=form, **arguments) for form in FORMS]
    sums, concatenations, grouped = built
    assert len(sums.get_layer("stage1_unit1_sum").input) == 4
    assert sums.get_layer("stage1_unit1_path4_expand_conv").kernel.shape == (1, 1, 8, 256)
    assert len(concatenations.get_layer("stage1_unit1_concatenate").input) == 4
    assert concatenations.get_layer("stage1_unit1_expand_conv").kernel.shape == (1, 1, 32, 256)
    assert grouped.get_layer("stage1_unit1_spatial_conv").groups == 4
    descriptions = [models.describe(model) for model in built]
    assert len({description.macs for description in descriptions}) == 1
    assert len({description.trainable_parameters for description in descriptions}) == 1


def test_a_cardinality_of_one_has_forms_too() -> None:
    model = models.create("resnext50_32x4d", **{**ONE_BLOCK, "cardinality": 1})
    images = np.ones((1, 32, 32, 3), "float32")
    for form in FORMS:
        assert relative_difference(logits(model, images), logits(rewrite.to_form(model, form), images)) <= 1e-5


def test_metadata_goes_along() -> None:
    model = models.create("resnext50_32x4d", num_classes=2, **ONE_BLOCK)
    model.metadata["class_names"] = ["cat", "dog"]
    assert rewrite.to_form(model, "b").metadata == model.metadata


def test_other_networks_have_no_blocks_to_rewrite() -> None:
    model = models.create("resnet18", input_shape=(32, 32, 3), num_classes=3)
    same = rewrite.to_form(model, "a")
    assert not rewrite.report_of(same).changes
    assert relative_difference(logits(model, images_of(model)), logits(same, images_of(model))) <= 1e-5
    with pytest.raises(ValueError, match="form='d': must be one of"):
        rewrite.to_form(model, "d")


def stock_model(form: str) -> keras.Model:
    """Return two ResNeXt blocks of Keras's own layers in a form, as somebody might write them."""
    inputs = keras.Input((8, 10, 12))
    first = hand_made_block(inputs, form, groups=4, filters=12, name="one")
    return disturbed(keras.Model(inputs, hand_made_block(first, form, groups=3, filters=12, name="two")))


def hand_made_block(x: Any, form: str, groups: int, filters: int, name: str) -> Any:
    layers = keras.layers
    paths = 1 if form == "c" else groups

    def narrow(path: int) -> Any:
        prefix = f"{name}_path{path + 1}" if paths > 1 else name
        y = layers.Conv2D(24 // paths, 1, use_bias=False, name=f"{prefix}_reduce")(x)
        y = layers.ReLU()(layers.BatchNormalization(name=f"{prefix}_bn1")(y))
        inner = groups // paths
        y = layers.Conv2D(24 // paths, 3, padding="same", groups=inner, use_bias=False, name=f"{prefix}_spatial")(y)
        return layers.Activation("relu")(layers.BatchNormalization(name=f"{prefix}_bn2")(y))

    ends = [narrow(path) for path in range(paths)]
    if form == "a":
        parts = [
            layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_path{path + 1}_expand")(end)
            for path, end in enumerate(ends)
        ]
        y = layers.Add()(parts) if name == "one" else functools.reduce(operator.add, parts)
    else:
        y = layers.Concatenate()(ends) if paths > 1 else ends[0]
        y = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_expand")(y)
    y = layers.BatchNormalization(name=f"{name}_bn3")(y)
    return layers.ReLU()(layers.Add()([y, x]))


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", FORMS)
@pytest.mark.shared
def test_stock_blocks_of_any_form_to_any_form(source: str, target: str) -> None:
    model = stock_model(source)
    converted = rewrite.to_form(model, target)
    assert_same(model, converted)
    by_hand = stock_model(target)
    counts = [sorted(tuple(w.shape) for w in each.weights) for each in (converted, by_hand)]
    assert counts[0] == counts[1]
    if source == "c" and target != "c":
        assert {f"one_spatial_path{path}" for path in (1, 2, 3, 4)} <= {layer.name for layer in converted.layers}
    if target == "c" and source != "c":
        assert converted.get_layer("two_spatial").groups == 3


@pytest.mark.parametrize("target", FORMS)
def test_blocks_that_have_a_form_keep_names_and_what_was_noted(target: str) -> None:
    model = rewrite.to_form(stock_model("c"), "a")
    model.get_layer("one_reduce_path2").seen = "by us"
    converted: Any = rewrite.to_form(model, target)
    assert_same(model, converted)
    if target == "a":
        assert [layer.name for layer in converted.layers] == [layer.name for layer in model.layers]
        assert "one_expand  4 branches and their sum, left as it is  it has form a" in str(rewrite.report_of(converted))
    if target != "c":
        assert converted.get_layer("one_reduce_path2").seen == "by us"


@pytest.mark.parametrize("form", "ab")
def test_paths_cast_what_their_block_casts(form: str) -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((8, 10, 12))
        x = keras.layers.Conv2D(8, 1)(inputs)
        x = keras.layers.Conv2D(8, 3, groups=2, padding="same")(x)
        x = keras.layers.Activation("relu", dtype="float32", autocast=False)(x)
        model = keras.Model(inputs, keras.layers.Conv2D(4, 1, use_bias=False)(x))
        as_given = keras.Model(model.inputs, x)
    finally:
        keras.config.set_dtype_policy("float32")
    converted = rewrite.to_form(model if form == "a" else as_given, form)
    assert any(layer.name.endswith("_path2") for layer in converted.layers)
    assert {layer.autocast for layer in converted.layers if layer.name.startswith("activation")} == {False}


def test_layers_of_one_name_in_two_models_keep_their_own_biases() -> None:
    inputs = keras.Input((8, 10, 12))
    inner = keras.Sequential([keras.Input((8, 10, 12)), keras.layers.Conv2D(12, 1, use_bias=False, name="conv")])
    outputs = inner(keras.layers.Conv2D(12, 1, name="conv")(hand_made_block(inputs, "c", 4, 12, "one")))
    model = disturbed(keras.Model(inputs, outputs))
    assert_same(model, rewrite.to_form(model, "a"))


def test_our_networks_and_stock_layers_are_cut_alike() -> None:
    model, images = trained("resnext50_32x4d", **ONE_BLOCK)
    plain = keras.Model(model.input, model.output)
    for form in "ab":
        expected, found = rewrite.to_form(model, form), rewrite.to_form(plain, form)
        names = [{layer.name for layer in each.layers if layer.weights} for each in (expected, found)]
        assert len(names[0]) == len(names[1])
        assert relative_difference(logits(expected, images), logits(found, images)) <= 1e-5


def test_a_block_that_is_none_is_named() -> None:
    inputs = keras.Input((8, 8, 12))
    model = keras.Model(inputs, keras.layers.Conv2D(12, 3, groups=3, name="alone")(inputs))
    assert "alone" in str(rewrite.report_of(rewrite.to_form(model, "b")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnext50_32x4d", "seresnext50_32x4d", "senet28", "resnext29_32x4d_cifar10"])
def test_forms_of_large_networks_agree(name: str) -> None:
    model, images = trained(name, input_shape=(64, 64, 3))
    expected = logits(model, images)
    for form in ("a", "b"):
        assert relative_difference(expected, logits(rewrite.to_form(model, form), images)) <= 1e-5


@pytest.mark.slow
def test_a_64x4d_in_form_a_builds_and_describes() -> None:
    with without_values():
        model = models.create("resnext101_64x4d", form="a")
    assert models.describe(model).macs == models.describe("resnext101_64x4d").macs
