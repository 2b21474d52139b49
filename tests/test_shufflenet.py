"""ShuffleNet v1 and v2: parameters, the unit by hand."""

from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.errors import UserError
from groupwise.models.network import without_values
from groupwise.models.shufflenet import SCALES, ShuffleNet
from tests import peers

V1_PARAMETERS = {
    "shufflenet_g1_w1": 1_531_936,
    "shufflenet_g2_w1": 1_733_848,
    "shufflenet_g3_w1": 1_865_728,
    "shufflenet_g4_w1": 1_968_344,
    "shufflenet_g8_w1": 2_434_768,
    "shufflenet_g1_w3d4": 975_214,
    "shufflenet_g1_wd2": 534_484,
    "shufflenet_g1_wd4": 209_746,
    "shufflenet_g3_w3d4": 1_238_266,
    "shufflenet_g3_wd2": 718_324,
    "shufflenet_g3_wd4": 305_902,
}
MEGVII_PARAMETERS = {
    "shufflenet_v1_x0_5_g3": 717_324,
    "shufflenet_v1_x1_5_g3": 3_441_168,
    "shufflenet_v1_x2_0_g3": 5_449_776,
    "shufflenet_v1_x0_5_g8": 1_010_448,
    "shufflenet_v1_x1_5_g8": 4_268_952,
    "shufflenet_v1_x2_0_g8": 6_521_232,
}
TORCHVISION_PARAMETERS = {
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
    "shufflenet_v2_x1_5": 3_503_624,
    "shufflenet_v2_x2_0": 7_393_996,
}
V2_PARAMETERS = {
    "shufflenetv2_wd2": 1_366_792,
    "shufflenetv2_w1": 2_278_604,
    "shufflenetv2_w3d2": 4_406_098,
    "shufflenetv2_w2": 7_601_686,
    "shufflenetv2b_wd2": 1_366_792,
    "shufflenetv2b_w1": 2_279_760,
    "shufflenetv2b_w3d2": 4_410_194,
    "shufflenetv2b_w2": 7_611_290,
}
PARAMETERS = {**V1_PARAMETERS, **MEGVII_PARAMETERS, **TORCHVISION_PARAMETERS, **V2_PARAMETERS}
QUICK = {
    "shufflenet_g1_wd4",
    "shufflenet_g3_wd4",
    "shufflenet_g3_w1",
    "shufflenet_v1_x0_5_g8",
    "shufflenet_v2_x0_5",
    "shufflenetv2_w3d2",
}


@pytest.mark.parametrize("name", peers.slow_unless(QUICK, PARAMETERS))
def test_parameters(name: str) -> None:
    assert models.describe(name).trainable_parameters == PARAMETERS[name]


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(
    ("shuffle", "after", "pool_first"),
    [("paper", False, False), ("inverse", False, True), ("inverse", True, True), (False, False, False)],
)
def test_unit_by_hand(shuffle: Any, after: bool, pool_first: bool, strides: int) -> None:
    """Figure 2 of the paper in loops, with fresh batch norms (a division by the root of 1 + epsilon)."""
    groups, channels, filters = 3, 12, 24 if strides == 2 else 12
    inputs = keras.Input((5, 5, channels))
    network = ShuffleNet(groups, shuffle=shuffle, shuffle_after_depthwise=after, pool_first=pool_first)
    unit = keras.Model(inputs, network.unit(inputs, filters, strides, groups, name="unit"))
    x = np.random.default_rng(0).normal(size=(1, 5, 5, channels)).astype("float32")
    kernels = [
        keras.ops.convert_to_numpy(unit.get_layer(f"unit_{step}_conv").kernel)
        for step in ("compress", "depthwise", "expand")
    ]
    scale = 1 / np.sqrt(1 + 1e-5)
    branch = np.maximum(_grouped_pointwise(x, kernels[0], groups) * scale, 0)
    if not after:
        branch = _shuffled(branch, groups, shuffle)
    branch = _depthwise(branch, kernels[1], strides) * scale
    if after:
        branch = _shuffled(branch, groups, shuffle)
    branch = _grouped_pointwise(branch, kernels[2], groups) * scale
    if strides == 2:
        pool = _depthwise(x, np.full((3, 3, channels, 1), 1 / 9), 2)
        expected = np.concatenate([pool, branch] if pool_first else [branch, pool], axis=-1)
    else:
        expected = branch + x
    outputs = keras.ops.convert_to_numpy(unit(x, training=False))
    np.testing.assert_allclose(outputs, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


def _shuffled(x: Any, groups: int, shuffle: Any) -> Any:
    outputs, width = np.array(x), x.shape[-1] // groups
    for group in range(groups if shuffle else 0):
        for index in range(width):
            source, target = group * width + index, index * groups + group
            if shuffle == "paper":
                outputs[..., target] = x[..., source]
            else:
                outputs[..., source] = x[..., target]
    return outputs


def _grouped_pointwise(x: Any, kernel: Any, groups: int) -> Any:
    slices, kernels = np.split(x, groups, axis=-1), np.split(kernel[0, 0], groups, axis=-1)
    return np.concatenate([s @ k for s, k in zip(slices, kernels, strict=True)], axis=-1)


def _depthwise(x: Any, kernel: Any, strides: int) -> Any:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = (x.shape[1] - 1) // strides + 1
    rows = [
        [(padded[:, i : i + 3, j : j + 3] * kernel[..., 0]).sum(axis=(1, 2)) for j in range(0, size * strides, strides)]
        for i in range(0, size * strides, strides)
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


AWKWARD = {"shufflenet_g4_wd4", "shufflenet_g4_w3d4", "shufflenet_g8_wd4", "shufflenet_g8_w3d4"}
PAIRS = [f"shufflenet_g{groups}_{scale}" for groups in (1, 2, 3, 4, 8) for scale in SCALES]


@pytest.mark.parametrize("name", peers.slow_unless(AWKWARD, PAIRS))
def test_every_pair_of_groups_and_scale_fits(name: str) -> None:
    """In units of strides 2 the groups divide the channels that remain beside the pool's."""
    with without_values():
        assert models.create(name, num_classes=2, input_shape=(32, 32, 3)).output_shape == (None, 2)


def test_variants_of_the_paper() -> None:
    options = {"num_classes": 5, "input_shape": (32, 32, 3)}
    with without_values():
        plain, excited, ablation = (
            models.create("shufflenet_g3_wd4", **options, **variant)
            for variant in ({}, {"squeeze_excite": True}, {"shuffle": False})
        )
    assert excited.count_params() > plain.count_params() == ablation.count_params()
    assert not [layer for layer in ablation.layers if "shuffle" in layer.name]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="groups=5"):
        models.create("shufflenet_g3_w1", groups=5)
    with pytest.raises(UserError, match="shuffle='reverse'"):
        models.create("shufflenet_g3_w1", shuffle="reverse")


def test_features() -> None:
    stages = ("stem", "stage1", "stage2", "stage3")
    with without_values():
        outputs = models.create("shufflenet_g3_w1", features=stages).output
    assert [outputs[stage].shape[1:] for stage in stages] == [(56, 56, 24), (28, 28, 240), (14, 14, 480), (7, 7, 960)]
