"""`rewrite.accelerate` and `diagnose` on others' models: Keras Applications, and keras-hub's where it is installed."""

import importlib.util
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import diagnose, rewrite
from groupwise.layers import DepthwiseConv2D, GroupedConv2D, SeparableConv2D
from tests.peers import slow_unless
from tests.rewriting import assert_same, disturbed

OURS = {"GroupedConv2D", "DepthwiseConv2D", "SeparableConv2D", "BatchNormalization"}
SIZES = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "Xception": 71,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "NASNetMobile": 32,
    "ConvNeXtTiny": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
}
# JAX compiles every operation by itself, minutes for the larger ones.
QUICK = {"MobileNet"} | ({"MobileNetV3Small", "ConvNeXtTiny"} if keras.backend.backend() != "jax" else set())


@pytest.mark.parametrize("name", slow_unless(QUICK, SIZES))
def test_keras_applications(name: str) -> None:
    if name == "NASNetMobile" and keras.backend.backend() == "torch":
        pytest.skip("Keras has no NASNet on PyTorch")
    shape = (SIZES[name], SIZES[name], 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, include_top=False, pooling="avg")
    assert not diagnose(model).findings
    fast = rewrite.accelerate(disturbed(model))
    assert_same(model, fast)
    stock = [
        layer.name
        for layer in fast.layers
        if type(layer).__name__ in OURS and type(layer).__module__.startswith("keras.") and len(layer.output.shape) == 4
    ]
    assert not stock
    assert not rewrite.report_of(fast).left


IMAGE: dict[str, Any] = {"image_shape": (32, 32, 3)}
BACKBONES: dict[str, dict[str, Any]] = {
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "bottleneck_block",
        **IMAGE,
    },
    "MobileNetBackbone": {
        "stackwise_expansion": [[40, 56], [64, 144]],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_filters": [[16, 16], [24, 24]],
        "stackwise_kernel_size": [[3, 3], [5, 5]],
        "stackwise_num_strides": [[2, 1], [2, 1]],
        "stackwise_se_ratio": [[None, None], [0.25, 0.25]],
        "stackwise_activation": [["relu6", "relu6"], ["hard_swish", "hard_swish"]],
        "stackwise_padding": [[1, 1], [2, 2]],
        "output_num_filters": 48,
        "input_num_filters": 16,
        "input_activation": "hard_swish",
        "output_activation": "hard_swish",
        "depthwise_filters": 8,
        "depthwise_stride": 1,
        "depthwise_residual": False,
        "last_layer_filter": 64,
        **IMAGE,
    },
    "EfficientNetBackbone": {
        "stackwise_width_coefficients": [1.0, 1.0],
        "stackwise_depth_coefficients": [1.0, 1.0],
        "stackwise_kernel_sizes": [3, 5],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [16, 16],
        "stackwise_output_filters": [16, 24],
        "stackwise_expansion_ratios": [1, 4],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_block_types": ["v1", "unfused"],
        "stackwise_force_input_filters": [0, 0],
        "stackwise_nores_option": [False, False],
        "input_shape": (32, 32, 3),
    },
    "XceptionBackbone": {"stackwise_conv_filters": [[8, 16], [24, 24]], "stackwise_pooling": [False, True], **IMAGE},
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.shared
def test_keras_hub_backbones(name: str) -> None:
    if importlib.util.find_spec("keras_hub") is None:
        pytest.skip("keras_hub is not installed: .ci/run installs it for this test alone, without what it asks for")
    import keras_hub

    make: Callable[..., keras.Model] = getattr(keras_hub.models, name)
    backbone = make(**BACKBONES[name])
    assert not diagnose(backbone).findings
    backbone = disturbed(backbone)
    fast = rewrite.accelerate(backbone)
    assert_same(backbone, fast)
    assert rewrite.report_of(fast).changes
    inner = [layer for layer in fast._flatten_layers() if isinstance(layer, keras.layers.Conv2D)]
    assert all(isinstance(layer, (GroupedConv2D, DepthwiseConv2D, SeparableConv2D)) for layer in inner)
    assert type(fast) is type(backbone)


def test_a_model_with_several_stages_as_outputs() -> None:
    model = keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), include_top=False, alpha=0.25)
    stages = [model.get_layer(f"conv_pw_{number}_relu").output for number in (1, 3, 5)]
    pyramid = disturbed(keras.Model(model.input, {f"P{i}": stage for i, stage in enumerate(stages)}))
    fast = rewrite.accelerate(pyramid)
    assert_same(pyramid, fast)
    images = np.zeros((1, 32, 32, 3), "float32")
    assert list(fast(images)) == ["P0", "P1", "P2"]
    assert [layer.name for layer in fast.layers] == [layer.name for layer in pyramid.layers]
