"""Grouped convolutions that were made by hand, of branches or of a depthwise one, become one layer."""

from collections.abc import Callable
from typing import Any

import keras
import pytest
from keras import layers, ops

from groupwise import rewrite
from tests.rewriting import (
    CHANNELS,
    GROUPS,
    WIDTH,
    assert_same,
    disturbed,
    kinds,
    model_of,
    resnext_block,
)


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


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = model_of(lambda x: sum_strided(resnext_block(x, CHANNELS, 3, "one")))
    fast = rewrite.accelerate(model)
    fast.save(tmp_path / "fast.keras")
    assert_same(model, keras.saving.load_model(tmp_path / "fast.keras"))
