"""The three convolutions of an inverted residual: found by the graph, and one pass where the model predicts."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as stock
from keras import ops

from groupwise import backends, layers, rewrite
from tests.frameworks import needs_core

pytestmark = needs_core


def ours(x: Any) -> Any:
    y = layers.GroupedConv2D(24, 1, use_bias=False)(x)
    y = layers.BatchNormalization(activation="relu6")(y)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.BatchNormalization(activation="relu6")(y)
    y = layers.GroupedConv2D(6, 1, use_bias=False)(y)
    return layers.BatchNormalization()(y, residual=x)


def of_stock_layers(x: Any) -> Any:
    """As Keras's MobileNetV2 has it, of stride 2."""
    y = stock.Conv2D(24, 1, use_bias=False)(x)
    y = stock.ZeroPadding2D(((0, 1), (0, 1)))(stock.ReLU(6.0)(stock.BatchNormalization()(y)))
    y = stock.DepthwiseConv2D(3, 2, use_bias=False)(y)
    y = stock.ReLU(6.0)(stock.BatchNormalization()(y))
    return stock.BatchNormalization()(stock.Conv2D(6, 1, use_bias=False)(y))


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Return the sizes of the kernels that the core has computed with in one pass, call by call."""
    calls: list[list[Any]] = []
    core = backends.active.core

    def separable(inputs: Any, *others: Any, run: Any = core.separable) -> Any:
        grouped, pointwise, _, *expansion = others
        calls.append([tuple(step.kernel.shape)[:2] for step in (*expansion, grouped, pointwise)])
        return run(inputs, *others)

    monkeypatch.setattr(core, "separable", separable)
    monkeypatch.setattr("groupwise.ops.pairs.usable_cores", lambda: 2)
    return calls


@pytest.mark.parametrize("block", [ours, of_stock_layers], ids=lambda block: block.__name__)
def test_it_predicts_in_one_pass(block: Any, kernels: list[list[Any]]) -> None:
    inputs = keras.Input((28, 28, 6))
    model = keras.Model(inputs, block(inputs))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = (array.shape for array in layer.get_weights())
            drawn = random.normal(1, 0.3, gamma), random.normal(size=beta), random.normal(size=mean)
            layer.set_weights([*drawn, random.uniform(0.5, 2, variance)])
    images = random.normal(size=(4, 28, 28, 6)).astype("float32")
    wanted = ops.convert_to_numpy(model(images, training=False))
    assert not kernels
    faster = rewrite.accelerate(model)
    found = ops.convert_to_numpy(faster(images, training=False))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert kernels == [[(1, 1), (3, 3), (1, 1)]]
    faster(images, training=True)
    assert len(kernels) == 1
