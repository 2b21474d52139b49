"""ResNet, ResNeXt, SENet and CIFAR's ResNeXt: parameters, MACs by hand, the shortcuts."""

from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.models.network import without_values
from groupwise.models.residual import BasicBlock
from tests import peers

PUBLISHED: dict[str, tuple[int, float | None]] = {
    "resnet18": (11_689_512, 1820.41),
    "resnet34": (21_797_672, 3672.68),
    "resnet50": (25_557_032, 4110.48),
    "resnet101": (44_549_160, 7597.95),
    "resnet152": (60_192_808, 11321.85),
    "resnext14_16x4d": (7_127_336, 1045.77),
    "resnext14_32x2d": (7_029_416, 1031.32),
    "resnext14_32x4d": (9_411_880, 1603.46),
    "resnext26_16x4d": (10_119_976, None),
    "resnext26_32x2d": (9_924_136, 1461.06),
    "resnext26_32x4d": (15_389_480, 2488.07),
    "resnext38_32x4d": (21_367_080, None),
    "resnext50_32x4d": (25_028_904, 4255.86),
    "resnext101_32x4d": (44_177_704, 8003.45),
    "resnext101_64x4d": (83_455_272, 15500.27),
    "resnext101_32x8d": (88_791_336, None),
    "resnext101_32x16d": (194_026_792, None),
    "resnext101_32x32d": (468_530_472, None),
    "resnext20_16x4d_cifar10": (1_995_082, 326.10),
    "resnext20_32x2d_cifar10": (1_946_698, None),
    "resnext20_32x4d_cifar10": (3_295_562, 563.47),
    "resnext29_32x4d_cifar10": (4_775_754, 780.55),
    "resnext29_8x64d_cifar10": (34_426_698, None),
    "resnext29_16x64d_cifar10": (68_155_210, 10709.34),
    "resnext56_32x2d_cifar10": (4_817_482, 741.34),
    "resnext272_1x64d_cifar10": (44_540_746, 6565.15),
    "resnext272_2x32d_cifar10": (32_928_586, 4867.11),
    "seresnet18": (11_778_592, 1820.88),
    "seresnet34": (21_958_868, None),
    "seresnet50": (28_088_024, 4115.78),
    "seresnet101": (49_326_872, 7602.76),
    "seresnet152": (66_821_848, 11328.52),
    "seresnext26_32x4d": (16_790_280, None),
    "seresnext50_32x4d": (27_559_896, 4261.16),
    "seresnext101_32x4d": (48_955_416, 8012.73),
    "seresnext101_64x4d": (88_232_984, 15509.54),
    "seresnext101_32x8d": (93_569_048, None),
    "senet16": (31_366_168, 5081.30),
    "senet28": (36_453_768, 5732.71),
    "senet40": (41_541_368, None),
    "senet52": (44_659_416, None),
    "senet103": (60_963_096, None),
    "senet154": (115_088_984, 20745.78),
}
"""Trainable parameters, and the peers' millions of multiply-adds where they publish them."""

# A count is the same on every backend: the deepest networks' once is enough in the quick suite.
DEEP = ("101", "103", "152", "154", "272")
COUNTED = {name for name in PUBLISHED if keras.backend.backend() == "torch" or not any(depth in name for depth in DEEP)}


def sketch(name: str, **arguments: Any) -> models.Network:
    """Return a network to look at, not to run."""
    with without_values():
        return models.create(name, **arguments)


@pytest.mark.parametrize("name", peers.slow_unless(COUNTED, PUBLISHED))
def test_parameters_and_macs(name: str) -> None:
    """The peers' MACs also count batch norm and activations, and some of their ResNets stride in the first 1x1."""
    parameters, millions = PUBLISHED[name]
    description = models.describe(name)
    assert description.trainable_parameters == parameters
    assert millions is None or description.macs == pytest.approx(millions * 1e6, rel=0.03)


def test_every_variant_is_counted() -> None:
    assert {*models.list_models("*resne*"), *models.list_models("senet*")} == set(PUBLISHED)


def test_squeeze_divisor_gives_timms_seresnet18() -> None:
    """Timm rounds 64 / 16 to 8; the paper, Cadene and pytorchcv keep 4."""
    model = sketch("seresnet18", squeeze_divisor=8)
    assert models.describe(model).trainable_parameters == 11_779_624


def test_macs_of_resnet18_by_hand() -> None:
    """Four stages of two blocks of two 3x3 convolutions; a projection begins the last three."""
    macs = 112**2 * 7 * 7 * 3 * 64 + 4 * 56**2 * 9 * 64 * 64 + 512 * 1000
    for side, width in ((28, 128), (14, 256), (7, 512)):
        macs += side**2 * (9 * width // 2 * width + 3 * 9 * width * width + width // 2 * width)
    assert macs == models.describe("resnet18").macs == 1_814_073_344


def test_macs_of_resnext14_16x4d_by_hand() -> None:
    """(Side and channels before the block, side after it, width of the 3x3, channels after it), and 16 groups."""
    macs = 112**2 * 7 * 7 * 3 * 64 + 2048 * 1000
    for before, channels, after, width, filters in (
        (56, 64, 56, 64, 256),
        (56, 256, 28, 128, 512),
        (28, 512, 14, 256, 1024),
        (14, 1024, 7, 512, 2048),
    ):
        macs += before**2 * channels * width
        macs += after**2 * (9 * width * width // 16 + width * filters + channels * filters)
    assert macs == models.describe("resnext14_16x4d").macs == 1_035_272_192


def test_macs_of_resnext29_8x64d_by_hand() -> None:
    """Three stages of three blocks; the first of each projects."""
    macs = 32**2 * 27 * 64 + 1024 * 10
    for before, channels, after, width, filters in (
        (32, 64, 32, 512, 256),
        (32, 256, 16, 1024, 512),
        (16, 512, 8, 2048, 1024),
    ):
        grouped = 9 * width * width // 8
        macs += before**2 * channels * width + after**2 * (grouped + width * filters + channels * filters)
        macs += 2 * after**2 * (2 * width * filters + grouped)
    assert macs == models.describe("resnext29_8x64d_cifar10").macs


def test_features_are_as_timms() -> None:
    """`timm.create_model("resnext50_32x4d", features_only=True)` gives these for 224x224, channels first."""
    stages = ("stem", "stage1", "stage2", "stage3", "stage4")
    outputs = sketch("resnext14_32x4d", features=stages).output
    shapes = [tensor.shape[1:] for tensor in outputs.values()]
    assert shapes == [(112, 112, 64), (56, 56, 256), (28, 28, 512), (14, 14, 1024), (7, 7, 2048)]


def test_backbone_and_other_sizes() -> None:
    backbone = sketch("resnext20_16x4d_cifar10", include_top=False, input_shape=(48, 40, 1))
    assert backbone.output_shape == (None, 12, 10, 1024)
    model = sketch("senet16", num_classes=7, input_shape=(64, 96, 3))
    assert model.output_shape == (None, 7)
    assert model.get_layer("dropout").rate == 0.2


def test_strides_stand_in_the_3x3_and_batch_norm_is_as_published() -> None:
    model = sketch("senet16", include_top=False, input_shape=(64, 64, 3))
    strided = [layer for layer in model.layers if getattr(layer, "strides", (1, 1)) != (1, 1)]
    assert {layer.name.rsplit("_", 2)[-2] for layer in strided} == {"stem1", "stem", "spatial", "shortcut"}
    assert {layer.padding for layer in strided if hasattr(layer, "kernel")} == {((1, 1), (1, 1))}
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(layer.epsilon, layer.momentum) for layer in norms} == {(1e-5, 0.9)}


def test_pad_shortcut_averages_and_appends_zeros() -> None:
    x, branch = keras.Input((4, 4, 2)), keras.Input((2, 2, 5))
    model = keras.Model([x, branch], BasicBlock(shortcut="pad").join(x, branch, 2, "unit"))
    values = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype("float32")
    outputs = keras.ops.convert_to_numpy(model([values, np.zeros((3, 2, 2, 5), "float32")]))
    pooled = values.reshape(3, 2, 2, 2, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(outputs[..., :2], np.maximum(pooled, 0), atol=1e-6)
    assert not outputs[..., 2:].any()
    assert {weight.path.split("/")[0] for weight in model.weights} == {"unit_spatial2_bn"}


def test_pad_shortcut_saves_the_projections() -> None:
    projections = [64 * 256, 256 * 512, 512 * 1024]
    saved = sum(projections) + 2 * (256 + 512 + 1024)
    model = sketch("resnext29_32x4d_cifar10", shortcut="pad")
    assert models.describe(model).trainable_parameters == 4_775_754 - saved


@pytest.mark.parametrize("arguments", [{"form": "d"}, {"shortcut": "none"}])
def test_unknown_choices_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        sketch("resnext20_16x4d_cifar10", **arguments)
