"""MobileNet, Xception, EfficientNet-Lite: parameters, MACs by hand."""

import pytest

from groupwise import models
from groupwise.models.network import without_values
from tests import peers

MOBILENET_PARAMETERS = {
    "mobilenet_wd4": 470_072,
    "mobilenet_wd2": 1_331_592,
    "mobilenet_w3d4": 2_585_560,
    "mobilenet_w1": 4_231_976,
}
TIMM_PARAMETERS = {
    "mobilenetv1_100": 4_231_976,
    "mobilenetv1_100h": 5_282_600,
    "mobilenetv1_125": 6_270_840,
    "legacy_xception": 22_855_952,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "tf_efficientnet_lite0": 4_652_008,
    "tf_efficientnet_lite1": 5_416_680,
    "tf_efficientnet_lite2": 6_092_072,
    "tf_efficientnet_lite3": 8_197_096,
    "tf_efficientnet_lite4": 13_006_568,
}
PARAMETERS = {**MOBILENET_PARAMETERS, **TIMM_PARAMETERS, "xception": 22_855_952}
QUICK = {"mobilenet_wd4", "mobilenetv1_100", "xception", "efficientnet_lite0", "tf_efficientnet_lite0"}


@pytest.mark.parametrize("name", peers.slow_unless(QUICK, PARAMETERS))
def test_parameters(name: str) -> None:
    assert models.describe(name).trainable_parameters == PARAMETERS[name]


def test_macs_of_mobilenet_by_hand() -> None:
    """Table 1 of the paper: (output side, input channels, output channels) of every separable unit, at 224x224."""
    units = [(112, 32, 64), (56, 64, 128), (56, 128, 128), (28, 128, 256), (28, 256, 256), (14, 256, 512)]
    units += [(14, 512, 512)] * 5 + [(7, 512, 1024), (7, 1024, 1024)]
    macs = 112**2 * 27 * 32 + sum(side**2 * c * (9 + filters) for side, c, filters in units) + 1024 * 1000
    assert macs == models.describe("mobilenet_w1").macs == 568_740_352


def test_macs_of_efficientnet_lite_are_as_published() -> None:
    """The authors' 407 million multiply-adds; timm prints 0.40 G."""
    assert 3.8e8 < models.describe("efficientnet_lite0").macs < 4.1e8


def test_drop_connect_grows_with_depth_and_drops_whole_images() -> None:
    with without_values():
        model, plain = (models.create("efficientnet_lite0", **options) for options in ({}, {"drop_connect": 0.0}))
    drops = [layer for layer in model.layers if layer.name.endswith("_drop")]
    rates = [layer.rate for layer in drops]
    assert rates == sorted(rates)
    assert 0 < rates[0] < rates[-1] < 0.2
    assert {layer.noise_shape for layer in drops} == {(None, 1, 1, 1)}
    assert not [layer for layer in plain.layers if layer.name.endswith("_drop")]


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [
        ("mobilenetv1_100", 224, 0.5),
        ("xception", 299, 0.5),
        ("efficientnet_lite2", 260, 0.485),
        ("tf_efficientnet_lite4", 380, 0.5),
    ],
)
def test_image_sizes_and_preprocessing(name: str, size: int, mean: float) -> None:
    variant = models.find(name)
    assert variant.input_shape == (size, size, 3)
    assert variant.preprocessing.mean[0] == mean


def test_features() -> None:
    with without_values():
        outputs = models.create("xception", features=("stem", "stage3", "final")).output
    assert [tensor.shape[1:] for tensor in outputs.values()] == [(147, 147, 64), (19, 19, 728), (10, 10, 2048)]
