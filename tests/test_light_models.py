"""MobileNet, Xception, EfficientNet-Lite: parameters, MACs by hand, and the peers' own networks."""

import re
from typing import Any

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

PYTORCHCV: peers.Renames = (
    (r"^features\.init_block\.(conv|bn)$", r"stem_\1"),
    (r"^features\.init_block\.conv(\d)\.", r"stem\1_"),
    (r"^features\.stage(\d)\.unit(\d+)\.dw_conv\.", r"stage\1_unit\2_depthwise_"),
    (r"^features\.stage(\d)\.unit(\d+)\.pw_conv\.", r"stage\1_unit\2_pointwise_"),
    (r"^features\.stage(\d)\.unit(\d+)\.body\.block(\d)\.", r"stage\1_unit\2_separable\3_"),
    (r"^features\.stage(\d)\.unit(\d+)\.identity_conv\.", r"stage\1_unit\2_shortcut_"),
    (r"^features\.final_block\.conv(\d)\.", r"final\1_"),
    (r"_conv\.dw_conv$", "_conv.depthwise"),
    (r"_conv\.pw_conv$", "_conv.pointwise"),
    ("^output$", "head"),
)


def _counted_from_one(match: re.Match[str]) -> str:
    return f"stage{int(match[1]) + 1}_unit{int(match[2]) + 1}_"


def _xception_unit(match: re.Match[str]) -> str:
    block = int(match[1])
    stage = 4 if block == 12 else min(block, 3)
    return f"stage{stage}_unit{max(block - 2, 1) if stage == 3 else 1}."


def _separable_step(match: re.Match[str]) -> str:
    """In `rep`, ReLU, convolution and batch norm take turns."""
    index, step = int(match[1]) // 3 + 1, match[2]
    return f"_separable{index}_conv{step}" if step else f"_separable{index}_bn"


TIMM: peers.Renames = (
    ("^conv_stem$", "stem_conv"),
    ("^conv_head$", "final_conv"),
    ("^bn1$", "stem_bn"),
    ("^bn2$", "final_bn"),
    ("^classifier$", "head"),
    (r"^blocks\.(\d+)\.(\d+)\.", _counted_from_one),
    (r"_conv_dw$", "_depthwise_conv"),
)
MOBILENET: peers.Renames = (
    *TIMM,
    ("_conv_pw$", "_pointwise_conv"),
    ("_bn1$", "_depthwise_bn"),
    ("_bn2$", "_pointwise_bn"),
)
EFFICIENTNET: peers.Renames = (
    *TIMM,
    (r"(stage1_unit\d+)_conv_pw$", r"\1_project_conv"),
    (r"(stage1_unit\d+)_bn1$", r"\1_depthwise_bn"),
    (r"(stage1_unit\d+)_bn2$", r"\1_project_bn"),
    ("_conv_pw$", "_expand_conv"),
    ("_conv_pwl$", "_project_conv"),
    ("_bn1$", "_expand_bn"),
    ("_bn2$", "_depthwise_bn"),
    ("_bn3$", "_project_bn"),
)
XCEPTION: peers.Renames = (
    (r"^conv([12])$", r"stem\1_conv"),
    (r"^bn([12])$", r"stem\1_bn"),
    (r"^conv3\.(\w+)$", r"final1_conv.\1"),
    (r"^conv4\.(\w+)$", r"final2_conv.\1"),
    ("^bn3$", "final1_bn"),
    ("^bn4$", "final2_bn"),
    (r"^block(\d+)\.", _xception_unit),
    (r"\.skip$", "_shortcut_conv"),
    (r"\.skipbn$", "_shortcut_bn"),
    (r"\.rep\.(\d)(\.\w+)?$", _separable_step),
    (r"\.conv1$", ".depthwise"),
    ("^fc$", "head"),
)


@pytest.mark.parametrize("name", peers.slow_unless(QUICK, PARAMETERS))
def test_parameters(name: str) -> None:
    assert models.describe(name).trainable_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", peers.slow_unless({"mobilenet_wd4"}, [*MOBILENET_PARAMETERS, "xception"]))
def test_parity_with_pytorchcv(name: str) -> None:
    peer = peers.import_peer("pytorchcv.model_provider").get_model(name, pretrained=False)
    pool = pytest.importorskip("torch").nn.AdaptiveAvgPool2d(1)
    if name == "xception":
        peer.features.final_block.pool = pool
    else:
        peer.features.final_pool = pool
    _compare(peer, name, PYTORCHCV)


@pytest.mark.parametrize("name", peers.slow_unless(QUICK - {"xception"}, TIMM_PARAMETERS))
def test_parity_with_timm(name: str) -> None:
    peer = peers.import_peer("timm").create_model(name, pretrained=False)
    renames = {"mob": MOBILENET, "leg": XCEPTION}.get(name[:3], EFFICIENTNET)
    _compare(peer, name, renames)


def _compare(peer: Any, name: str, renames: peers.Renames) -> None:
    peers.randomise(peer)
    model = models.create(name, input_shape=(None, None, 3))
    peers.copy_weights(peer, model, renames)
    assert max(peers.relative_difference(peer, model, size) for size in (64, 75)) < 1e-4


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
