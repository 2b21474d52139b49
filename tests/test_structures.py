"""Grouped as dense, dense as grouped, separable as dense, dense as separable: exact, or the nearest."""

from typing import Any

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers

from groupwise import rewrite
from groupwise.errors import UserError
from groupwise.rewrite import kernels
from tests.reference import Convolution
from tests.rewriting import assert_same, difference, disturbed, kinds, resnext_block


def model_of(*stack: Any, shape: tuple[int, ...] = (9, 8, 12)) -> keras.Model:
    return disturbed(keras.Sequential([keras.Input(shape), *stack]))


def test_grouped_and_depthwise_as_dense_and_back() -> None:
    inputs = keras.Input((9, 8, 12))
    x = resnext_block(inputs, 12, 3, "one")
    x = layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, activation="relu", name="depthwise")(x)
    model = disturbed(keras.Model(inputs, x))
    dense = rewrite.grouped_to_dense(model)
    assert_same(model, dense)
    assert dense.get_layer("one_spatial").kernel.shape == (3, 3, 6, 6)
    assert dense.get_layer("depthwise").kernel.shape == (3, 3, 12, 24)
    again = rewrite.dense_to_grouped(dense, 3, layers="one_spatial")
    assert_same(model, again)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(again.get_layer("one_spatial").kernel),
        keras.ops.convert_to_numpy(model.get_layer("one_spatial").kernel),
    )
    # A depthwise convolution is one of as many groups as channels.
    assert_same(model, rewrite.dense_to_grouped(dense, 12, layers="depthwise"))


def test_a_full_kernel_is_refused_with_the_share_outside() -> None:
    model = model_of(layers.Conv2D(4, 1, use_bias=False, name="full"), shape=(4, 4, 4))
    # Blocks of 1s and, outside them, 1s too: 8 of 16 entries, the root of a half of the norm.
    model.set_weights([np.ones((1, 1, 4, 4))])
    with pytest.raises(UserError, match=r"full: 70\.7% of its kernel's norm lies outside"):
        rewrite.dense_to_grouped(model, 2)
    with pytest.raises(UserError, match="5 groups do not divide"):
        rewrite.dense_to_grouped(model, 5)


def hidden_groups(seed: int = 0) -> keras.Model:
    """Return a model whose middle kernel is grouped, but for the order of its channels."""
    random = np.random.default_rng(seed)
    model = model_of(
        layers.Conv2D(12, 1, name="before"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Conv2D(8, 3, padding="same", name="hidden"),
        layers.BatchNormalization(),
        layers.Activation("tanh"),
        layers.DepthwiseConv2D(3),
        layers.Conv2D(5, 1, name="after"),
    )
    kernel = kernels.dense_of_grouped(random.normal(size=(3, 3, 3, 8)).astype("float32"), 4)
    kernel = kernel[:, :, random.permutation(12)][..., random.permutation(8)]
    hidden = model.get_layer("hidden")
    hidden.set_weights([kernel, random.normal(size=8)])
    return model


def test_hidden_groups_are_found_and_the_order_is_carried_into_the_neighbours() -> None:
    model = hidden_groups()
    with pytest.raises(UserError, match="outside"):
        rewrite.dense_to_grouped(model, 4, layers="hidden")
    grouped = rewrite.dense_to_grouped(model, 4, layers="hidden", approximate=True)
    assert grouped.get_layer("hidden").groups == 4
    assert "PermuteChannels" not in kinds(grouped)
    assert_same(model, grouped)
    [change] = rewrite.report_of(grouped).changes
    assert change.error == pytest.approx(0, abs=1e-6)


def test_no_order_is_carried_into_a_quantized_layer() -> None:
    random = np.random.default_rng(0)
    model = model_of(layers.Conv2D(8, 3, name="hidden"), layers.ReLU(), layers.Dense(8, name="head"))
    kernel = kernels.dense_of_grouped(random.normal(size=(3, 3, 3, 8)).astype("float32"), 4)
    model.get_layer("hidden").set_weights([kernel[..., random.permutation(8)], random.normal(size=8)])
    model.get_layer("head").quantize("int8")
    grouped = rewrite.dense_to_grouped(model, 4, layers="hidden", approximate=True)
    assert difference(model, grouped) < 0.02  # int8 rounds by a hundredth
    assert "PermuteChannels" in kinds(grouped)


def test_where_the_order_cannot_be_carried_a_layer_permutes() -> None:
    inputs = keras.Input((6, 6, 12))
    x = layers.Conv2D(12, 3, padding="same", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Add()([x, inputs]))
    random = np.random.default_rng(0)
    kernel = kernels.dense_of_grouped(random.normal(size=(3, 3, 3, 12)).astype("float32"), 4)
    model.get_layer("hidden").set_weights([kernel[:, :, random.permutation(12)], random.normal(size=12)])
    grouped = rewrite.dense_to_grouped(model, 4, approximate=True)
    assert_same(model, grouped)
    assert "PermuteChannels" in kinds(grouped)


@hypothesis.given(st.integers(0, 1000), st.sampled_from([(2, 4, 6), (3, 6, 9), (4, 8, 4), (1, 5, 3)]))
@hypothesis.settings(max_examples=25)
def test_an_order_is_never_worse_than_none(seed: int, sizes: tuple[int, int, int]) -> None:
    groups, ins, outs = sizes
    kernel = np.random.default_rng(seed).normal(size=(3, 3, ins, outs))
    in_order, out_order = kernels.group_channels(kernel, groups, seed)
    assert sorted(in_order) == list(range(ins))
    assert sorted(out_order) == list(range(outs))
    assert kernels.outside(kernel[:, :, in_order][..., out_order], groups) <= kernels.outside(kernel, groups) + 1e-12


@pytest.mark.parametrize("multiplier", [1, 3])
def test_separable_as_dense(multiplier: int) -> None:
    model = model_of(
        layers.SeparableConv2D(7, 3, 2, "same", depth_multiplier=multiplier, activation="relu"),
        layers.DepthwiseConv2D(3, depth_multiplier=multiplier, name="depthwise"),
        layers.Conv2D(5, 1, activation="tanh"),
    )
    dense = rewrite.separable_to_dense(model)
    assert_same(model, dense)
    assert kinds(dense) == ["GroupedConv2D", "GroupedConv2D"]


def test_a_frozen_half_of_a_separable_convolution_stays_frozen() -> None:
    first, second = layers.DepthwiseConv2D(3, bias_regularizer="l2"), layers.Conv2D(4, 1, name="pointwise")
    model = model_of(first, second)
    second.trainable = False
    report = str(rewrite.report_of(rewrite.separable_to_dense(model)))
    assert "pointwise  Conv2D, left as it is  it is frozen, or depthwise_conv2d" in report
    first.trainable = False
    report = str(rewrite.report_of(rewrite.separable_to_dense(model)))
    assert "dense GroupedConv2D  without its bias_regularizer" in report


def test_dense_as_separable_is_exact_at_full_rank_and_better_with_each_rank() -> None:
    model = model_of(layers.Conv2D(16, 3, padding="same", activation="relu", name="large"), layers.Conv2D(4, 1))
    assert_same(model, rewrite.dense_to_separable(model, 9))
    assert_same(model, rewrite.dense_to_separable(model, 99))
    separable = [rewrite.dense_to_separable(model, rank) for rank in (1, 2, 4, 8)]
    errors = [rewrite.report_of(each).changes[0].error or 0.0 for each in separable]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 1
    off = [difference(model, each) for each in separable]
    assert off[0] > off[-1] > 1e-5
    assert kinds(separable[0]) == ["SeparableConv2D", "Conv2D"]
    # 9x8 pixels, 12 channels: 9 taps and 16 filters before; rank (9 + 16) after, of rank 1.
    before, after = 9 * 8 * (12 * 9 * 16 + 16 * 4), 9 * 8 * (12 * 9 + 12 * 16 + 16 * 4)
    assert f"{before:,} -> {after:,}" in str(rewrite.report_of(separable[0]))


def test_the_singular_values_give_the_nearest() -> None:
    """Against the definition: the error is that of the kernels' difference, and no small step makes it smaller."""
    random = np.random.default_rng(3)
    kernel = random.normal(size=(3, 3, 2, 6))
    depthwise, pointwise, error = kernels.separable_of_dense(kernel, 2)

    def off(spatial: Any, mixing: Any) -> float:
        return float(np.linalg.norm(kernels.dense_of_separable(spatial, mixing) - kernel) / np.linalg.norm(kernel))

    assert off(depthwise, pointwise) == pytest.approx(error)
    for _ in range(20):
        step = 1e-3 * random.normal(size=depthwise.shape), 1e-3 * random.normal(size=pointwise.shape)
        assert off(depthwise + step[0], pointwise + step[1]) > error


def test_kernels_of_both_kinds_give_the_reference_sums() -> None:
    random = np.random.default_rng(0)
    inputs, depthwise = random.normal(size=(1, 5, 5, 4)), random.normal(size=(3, 3, 4, 2))
    pointwise, grouped = random.normal(size=(1, 1, 8, 3)), random.normal(size=(3, 3, 2, 6))
    two_steps = Convolution(groups=4).forward(inputs, depthwise.reshape(3, 3, 1, 8))
    expected = Convolution().forward(two_steps, pointwise)
    np.testing.assert_allclose(
        Convolution().forward(inputs, kernels.dense_of_separable(depthwise, pointwise)), expected, atol=1e-12
    )
    np.testing.assert_allclose(
        Convolution().forward(inputs, kernels.dense_of_grouped(grouped, 2)),
        Convolution(groups=2).forward(inputs, grouped),
        atol=1e-12,
    )
    np.testing.assert_array_equal(kernels.grouped_of_dense(kernels.dense_of_grouped(grouped, 2), 2), grouped)


def test_a_model_without_products_has_none_to_save() -> None:
    model = model_of(layers.ReLU())
    assert rewrite.report_of(rewrite.dense_to_separable(model, 2)).notes == []


def test_wrong_arguments_are_said() -> None:
    model = model_of(layers.Conv2D(4, 3))
    with pytest.raises(UserError, match="rank=0: must be at least 1"):
        rewrite.dense_to_separable(model, 0)
    with pytest.raises(UserError, match=r"no layer .* matches 'x\*'"):
        rewrite.dense_to_grouped(model, 2, layers="x*")
