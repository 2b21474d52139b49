"""Batches, heights and widths that are symbols while a framework traces: one graph gives the right values for all."""

import importlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import layers
from groupwise.spec import same_padding
from tests.frameworks import BACKEND

# Both parities, and one pair that is padded on one side alone.
SIZES = ((2, 7, 7), (1, 8, 11), (3, 12, 9), (2, 10, 10))
MAKERS: dict[str, Callable[[], Any]] = {
    "same": lambda: layers.GroupedConv2D(4, 3, 2, "same", groups=2),
    "larger stride than kernel": lambda: layers.GroupedConv2D(4, 2, 3, "same"),
    "1x1": lambda: layers.GroupedConv2D(4, 1, 2, "same"),
    "dilated": lambda: layers.GroupedConv2D(4, 3, 1, "same", dilation_rate=2),
    "explicit": lambda: layers.DepthwiseConv2D(3, 2, ((0, 1), (1, 2))),
    "separable": lambda: layers.SeparableConv2D(4, 3, 2, "same"),
    "depthwise_sum": lambda: layers.GroupedConv2D(4, 3, 2, "same", groups=2, algorithm="depthwise_sum"),
    "blocks": lambda: layers.GroupedConv2D(4, 3, 2, "same", groups=2, algorithm="blocks"),
    "matmul": lambda: layers.GroupedConv2D(4, 1, 2, "same", algorithm="matmul"),
    "maxima": lambda: layers.MaxPooling2D(3, 2, "same"),
    "maxima, explicit": lambda: layers.MaxPooling2D(3, 2, ((1, 1), (1, 1))),
    "averages": lambda: layers.AveragePooling2D(2, 2, "same"),
    "averages, channels first": lambda: layers.AveragePooling2D(3, 2, "same", data_format="channels_first"),
    "norm": lambda: layers.BatchNormalization(),
    "squeeze": lambda: layers.SqueezeExcite(2),
    "shuffle": lambda: layers.ChannelShuffle(2),
    "permutation": lambda: layers.PermuteChannels([2, 0, 1, 3]),
}


def exported(layer: Any, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Return the layer traced once, every size but the channels a symbol; `shape` is PyTorch's example."""
    first = getattr(layer, "data_format", None) == "channels_first"
    free = (0, 2, 3) if first else (0, 1, 2)
    if BACKEND == "torch":
        torch = importlib.import_module("torch")
        symbolic = dict.fromkeys(free, torch.export.Dim.AUTO)
        with torch.no_grad():
            return torch.export.export(layer, (torch.ones(shape),), dynamic_shapes=((symbolic,),)).module()
    if BACKEND == "tensorflow":
        tf = importlib.import_module("tensorflow")
        unknown = [None if axis in free else size for axis, size in enumerate(shape)]
        return tf.function(lambda inputs: layer(inputs), input_signature=[tf.TensorSpec(unknown)])
    jax = importlib.import_module("jax")
    symbols = iter(jax.export.symbolic_shape("batch, height, width", constraints=["height >= 6", "width >= 6"]))
    sizes = [next(symbols) if axis in free else size for axis, size in enumerate(shape)]
    traced = jax.export.export(jax.jit(lambda inputs: layer(inputs)))(jax.ShapeDtypeStruct(sizes, "float32"))
    return traced.call


def torchscript(layer: Any, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    """Return the layer traced as Keras traces it for ONNX files with sizes that vary."""
    torch = importlib.import_module("torch")
    with torch.no_grad():
        return torch.jit.trace(layer, torch.ones(shape), check_trace=False)


def check(layer: Any, trace: Callable[..., Callable[[Any], Any]], examples: tuple[Any, ...]) -> None:
    first = getattr(layer, "data_format", None) == "channels_first"
    shapes = [(batch, 4, *image) if first else (batch, *image, 4) for batch, *image in SIZES]
    layer.build((None, 4, None, None) if first else (None, None, None, 4))
    for example in examples:
        function = trace(layer, shapes[example])
        for shape in shapes:
            inputs = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape), "float32")
            expected = keras.ops.convert_to_numpy(keras.ops.stop_gradient(layer(inputs)))
            actual = keras.ops.convert_to_numpy(keras.ops.stop_gradient(function(inputs)))
            assert actual.shape == expected.shape == layer.compute_output_shape(shape)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_symbols_stand_for_every_size(name: str) -> None:
    if BACKEND == "tensorflow" and "first" in name:
        pytest.skip("TensorFlow pools no channels_first on a CPU")
    check(MAKERS[name](), exported, (0,))


# It warns wherever Python sees a size, and the test shows which are kept.
@pytest.mark.filterwarnings("ignore:(Converting a tensor|Iterating over a tensor|torch.as_tensor results)")
@pytest.mark.skipif(BACKEND != "torch", reason="TorchScript is PyTorch's")
@pytest.mark.parametrize("name", MAKERS)
def test_torchscript_keeps_no_size_of_its_example(name: str) -> None:
    check(MAKERS[name](), torchscript, (0, 1))


def test_padding_by_symbols_is_the_definition() -> None:
    for extent in range(1, 8):
        for stride in range(1, 8):
            for size in range(1, 30):
                total = max((-(-size // stride) - 1) * stride + extent - size, 0)
                assert same_padding(size, extent, stride) == (total // 2, total - total // 2)
