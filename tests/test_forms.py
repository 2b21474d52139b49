"""ResNeXt's three forms: the same function, weights carried from any to any."""

from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.models.network import without_values
from groupwise.models.residual import FORMS
from tests import peers

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


def relative_difference(first: Any, second: Any) -> float:
    return float(np.abs(first - second).max() / np.abs(first).max())


@pytest.mark.parametrize("name", peers.slow_unless(QUICK, SMALL))
def test_forms_agree_after_training(name: str) -> None:
    model, images = trained(name, **SMALL[name])
    norm = model.get_layer("stage1_unit1_expand_bn")
    assert np.abs(keras.ops.convert_to_numpy(norm.moving_mean)).max() > 1e-3
    expected = logits(model, images)
    for form in FORMS:
        converted = models.convert_form(model, form)
        assert converted.architecture["form"] == form
        assert converted.count_params() >= model.count_params()
        assert relative_difference(expected, logits(converted, images)) <= 1e-5


def test_any_form_to_any_form_keeps_every_weight() -> None:
    model, _ = trained("seresnext50_32x4d", **ONE_BLOCK)
    converted = model
    for form in "aabbacbcc":  # from c: each of the nine pairs once
        converted = models.convert_form(converted, form)
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
        assert relative_difference(logits(model, images), logits(models.convert_form(model, form), images)) <= 1e-5


def test_metadata_goes_along() -> None:
    model = models.create("resnext50_32x4d", num_classes=2, **ONE_BLOCK)
    model.metadata["class_names"] = ["cat", "dog"]
    assert models.convert_form(model, "b").metadata == model.metadata


def test_other_networks_have_no_forms() -> None:
    with without_values():
        resnet, resnext = models.create("resnet18"), models.create("resnext14_16x4d")
    with pytest.raises(ValueError, match="only a ResNeXt"):
        models.convert_form(resnet, "a")
    with pytest.raises(ValueError, match="only a ResNeXt"):
        models.convert_form(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form='d': must be one of"):
        models.convert_form(resnext, "d")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnext50_32x4d", "seresnext50_32x4d", "senet28", "resnext29_32x4d_cifar10"])
def test_forms_of_large_networks_agree(name: str) -> None:
    model, images = trained(name, input_shape=(64, 64, 3))
    expected = logits(model, images)
    for form in ("a", "b"):
        assert relative_difference(expected, logits(models.convert_form(model, form), images)) <= 1e-5


@pytest.mark.slow
def test_a_64x4d_in_form_a_builds_and_describes() -> None:
    with without_values():
        model = models.create("resnext101_64x4d", form="a")
    assert models.describe(model).macs == models.describe("resnext101_64x4d").macs
