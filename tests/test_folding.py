"""`rewrite.fold_batch_norm`: the same function for inference, without the batch norms."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from groupwise import models, rewrite
from tests.peers import slow_unless
from tests.rewriting import assert_same, difference, disturbed, images_for, kinds, one_calls, outputs_of, resnext_block


def model_of(build: Callable[[Any], Any], shape: tuple[int, ...] = (9, 8, 12)) -> keras.Model:
    inputs = keras.Input(shape)
    return disturbed(keras.Model(inputs, build(inputs)))


def test_residual_blocks_become_convolutions_alone() -> None:
    model = model_of(lambda x: resnext_block(resnext_block(x, 12, 3, "one"), 24, 4, "two", 2))
    folded = rewrite.fold_batch_norm(model)
    assert_same(model, folded)
    assert kinds(folded).count("GroupedConv2D") == 7
    assert set(kinds(folded)) == {"GroupedConv2D", "Add", "ReLU"}
    calls = list(one_calls(folded).values())
    assert sorted(calls) == ["GroupedConv2D, Add, ReLU"] * 2 + ["GroupedConv2D, ReLU"] * 4
    assert "moving statistics have become weights" in str(rewrite.report_of(folded))


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"epsilon": 0.1}])
@pytest.mark.parametrize("use_bias", [False, True])
def test_every_kind_of_convolution(options: dict[str, Any], use_bias: bool) -> None:
    def build(x: Any) -> Any:
        for layer in (
            layers.Conv2D(8, 3, padding="same", groups=2, use_bias=use_bias),
            layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, use_bias=use_bias),
            layers.SeparableConv2D(6, 3, use_bias=use_bias),
        ):
            x = layers.ReLU(6.0)(layers.BatchNormalization(**options)(layer(x)))
        x = layers.Dense(5, use_bias=use_bias)(layers.Flatten()(x))
        return layers.Activation("tanh")(layers.BatchNormalization(**options)(x))

    model = model_of(build)
    folded = rewrite.fold_batch_norm(model)
    assert_same(model, folded)
    assert "BatchNormalization" not in kinds(folded)


def test_by_hand() -> None:
    model = model_of(
        lambda x: layers.BatchNormalization(epsilon=0.0, name="bn")(layers.Conv2D(1, 1, name="c")(x)), (1, 1, 1)
    )
    model.get_layer("c").set_weights([np.full((1, 1, 1, 1), 3.0), np.array([1.0])])
    model.get_layer("bn").set_weights([np.array([v]) for v in (2.0, 5.0, 4.0, 16.0)])  # gamma, beta, mean, variance
    folded = rewrite.fold_batch_norm(model)
    # (3 x + 1 - 4) * 2 / 4 + 5 = 1.5 x + 3.5
    kernel, bias = folded.get_layer("bn").get_weights()  # whose value it gives
    assert (kernel.item(), bias.item()) == pytest.approx((1.5, 3.5))


def test_a_batch_norm_that_nothing_leads_to_stays_and_is_named() -> None:
    def build(x: Any) -> Any:
        x = layers.ReLU()(layers.BatchNormalization(name="first")(x))
        shared = layers.Conv2D(12, 1, name="shared")
        x = layers.BatchNormalization(name="second")(shared(x)) + shared(x)
        return layers.Conv2D(3, 1, activation="relu", name="activated")(x)

    model = model_of(build)
    folded = rewrite.fold_batch_norm(model)
    assert_same(model, folded)
    assert {left.layer for left in rewrite.report_of(folded).left} == {"first", "second"}


NETWORKS: dict[str, dict[str, Any]] = {
    "resnext20_16x4d_cifar10": {"blocks": 1, "cardinality": 4, "width": 8, "input_shape": (16, 16, 3)},
    "seresnext50_32x4d": {"depths": [1], "cardinality": 4, "width": 8, "input_shape": (32, 32, 3)},
    "shufflenet_g3_w1": {"input_shape": (64, 64, 3)},
    "mobilenetv1_100": {"input_shape": (64, 64, 3)},
    "efficientnet_lite0": {"input_shape": (64, 64, 3)},
}


# JAX compiles every operation by itself.
QUICK = {"resnext20_16x4d_cifar10", "mobilenetv1_100"} if keras.backend.backend() == "jax" else set(NETWORKS)


@pytest.mark.parametrize("name", slow_unless(QUICK, NETWORKS))
def test_our_networks_have_no_batch_norm_left(name: str, tmp_path: Any) -> None:
    network = disturbed(models.create(name, num_classes=5, **NETWORKS[name]))
    network.metadata["class_names"] = list("abcde")
    folded = rewrite.fold_batch_norm(network)
    assert_same(network, folded)
    assert "BatchNormalization" not in kinds(folded)
    assert folded.metadata == network.metadata
    folded.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    assert loaded.metadata == network.metadata
    arrays = images_for(network)
    np.testing.assert_array_equal(outputs_of(loaded, arrays)[0], outputs_of(folded, arrays)[0])


def test_mixed_precision_stays_what_it_was() -> None:
    network = disturbed(models.create("resnet18", num_classes=3, input_shape=(32, 32, 3), dtype="mixed_bfloat16"))
    folded = rewrite.fold_batch_norm(network)
    assert {layer.compute_dtype for layer in folded.layers if layer.name.endswith("_bn")} == {"bfloat16"}
    assert difference(network, folded) < 0.05


def test_fused_networks_train_as_before() -> None:
    network = models.create("mnist_cnn_separable", num_classes=3)
    fused = rewrite.fuse(network)
    assert_same(disturbed(network), rewrite.fuse(network))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fused.compile("sgd", loss)
    images = images_for(network, 4)[0]
    assert np.isfinite(float(fused.train_on_batch(images, np.array([0, 1, 2, 0]))))
