"""Aligned Xception: parameters, MACs of a unit by hand, timm's preprocessing."""

import keras
import pytest

from groupwise import models
from groupwise.models.network import without_values
from groupwise.models.xception_aligned import aligned_unit, preactivation_unit
from tests import peers

PARAMETERS = {
    "xception41": 26_969_560,
    "xception65": 39_916_312,
    "xception71": 42_338_736,
    "xception41p": 26_907_752,
    "xception65p": 39_819_560,
}
QUICK = {"xception41", "xception41p"}


@pytest.mark.parametrize("name", peers.slow_unless(QUICK, PARAMETERS))
def test_parameters(name: str) -> None:
    assert models.describe(name).trainable_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_preprocessing_and_epsilon_are_timms(name: str) -> None:
    timm = peers.import_peer("timm")
    with without_values():
        model = models.create(name)
    peer, variant = timm.create_model(name, pretrained=False), models.find(name)
    config = peer.default_cfg
    preprocessing = variant.preprocessing
    assert variant.input_shape == (*config["input_size"][1:], config["input_size"][0])
    assert (preprocessing.mean, preprocessing.std) == (config["mean"], config["std"])
    assert (preprocessing.crop, preprocessing.interpolation) == (config["crop_pct"], config["interpolation"])
    assert model.get_layer("stem1_bn").epsilon == peer.stem[0].bn.eps


def test_features() -> None:
    stages = ("stem", "stage1", "stage2", "stage3", "stage4", "final")
    shapes = [(150, 64), (75, 128), (38, 256), (19, 728), (10, 1024), (10, 2048)]
    with without_values():
        for name in QUICK:
            outputs = models.create(name, features=stages).output
            assert [outputs[stage].shape[2:] for stage in stages] == shapes
        deep = models.create("xception71", features=stages).output
    assert [deep[stage].shape[-1] for stage in stages] == [64, 256, 728, 728, 1024, 2048]


@pytest.mark.parametrize("unit", [aligned_unit, preactivation_unit])
def test_macs_of_a_strided_unit_by_hand(unit) -> None:
    """Depthwise 9 and 1x1 at the input's size twice, the third at half of it, where the shortcut is too."""
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, unit(inputs, (6, 10, 12), 2, name="unit"))
    full, half = 4 * 9 + 4 * 6 + 6 * 9 + 6 * 10, 10 * 9 + 10 * 12 + 4 * 12
    assert models.describe(model).macs == 64 * full + 16 * half
