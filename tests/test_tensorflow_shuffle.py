"""TensorFlow: the channel shuffle as the core's operation, and who uses it."""

from typing import Any

import keras
import numpy as np
import pytest

from groupwise import layers, ops
from groupwise.core import library
from tests.frameworks import needs_core

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own shuffle is the slow one"),
    needs_core,
]


def dealt(x: np.ndarray, groups: int) -> np.ndarray:
    n = x.shape[-1] // groups
    return np.stack([x[..., g * n + i] for i in range(n) for g in range(groups)], axis=-1)


def operations_of(layer: Any, *shape: int | None) -> set[str]:
    import tensorflow as tf

    traced = tf.function(layer).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    return {operation.type for operation in traced.graph.get_operations()}


@pytest.mark.parametrize(("groups", "channels"), [(1, 4), (2, 6), (3, 60), (4, 36), (5, 35), (8, 384), (6, 6)])
@pytest.mark.parametrize("shape", [(2, 3, 5), (0, 4, 4), (7, 40, 40), (3,)])
def test_a_layer_and_its_inverse(groups: int, channels: int, shape: tuple[int, ...]) -> None:
    inputs = np.random.default_rng(0).normal(size=(*shape, channels)).astype("float32")
    shuffled = layers.ChannelShuffle(groups)(inputs)
    np.testing.assert_array_equal(shuffled, dealt(inputs, groups))
    np.testing.assert_array_equal(layers.ChannelShuffle(groups, inverse=True)(shuffled), inputs)


def test_gradients_are_shuffled_back_any_number_of_times() -> None:
    import tensorflow as tf

    x, y = (tf.random.normal((2, 3, 3, 12)) for _ in range(2))
    layer = layers.ChannelShuffle(3)
    with tf.GradientTape() as outer:
        outer.watch([x, y])
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(layer(x) ** 2 * y)
        first = tape.gradient(total, x)
        penalty = tf.reduce_sum(first**2)
    # total = sum of x^2 z, where z is y dealt back.
    z = np.asarray(ops.channel_shuffle(y, 3, inverse=True))
    np.testing.assert_allclose(first, 2 * x * z, rtol=1e-6)
    to_x, to_y = outer.gradient(penalty, [x, y])
    np.testing.assert_allclose(to_x, 8 * x * z**2, rtol=1e-5)
    np.testing.assert_allclose(to_y, dealt(8 * np.asarray(x) ** 2 * z, 3), rtol=1e-5)


def test_sizes_may_be_unknown_and_what_the_core_cannot_shuffle_is_tensorflows() -> None:
    assert "GroupwiseShuffle" in operations_of(layers.ChannelShuffle(3), None, None, None, 12)
    assert "GroupwiseShuffle" not in operations_of(layers.ChannelShuffle(3, dtype="float16"), 1, 4, 4, 12)
    first = layers.ChannelShuffle(3, data_format="channels_first")
    assert "GroupwiseShuffle" not in operations_of(first, 1, 12, 4, 4)
    with pytest.raises(ValueError, match="groups=5: must divide the 12 channels"):
        layers.ChannelShuffle(5)(np.zeros((1, 2, 2, 12), "float32"))


def test_the_operation_names_the_wrong_groups() -> None:
    import tensorflow as tf

    from groupwise.backends.tensorflow.shuffle import shuffle

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"shape \(2, 7\).*groups=3 divide the channels"):
        shuffle(tf.zeros((2, 7)), 3)


def test_the_core_refuses_what_is_no_shuffle() -> None:
    core = library.loaded()
    for sizes in ((-1, 2, 2), (1, 0, 2), (1, 2, -2), (1 << 40, 1 << 20, 1 << 20)):
        assert core.gw_shuffle(*sizes, None, None, None) == 1
    assert core.gw_shuffle(1, 2, 2, None, None, None) == 1
    assert core.gw_shuffle(0, 2, 2, None, None, None) == 0


def test_a_graph_that_knows_no_shapes_has_gradients() -> None:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    layer, given = layers.ChannelShuffle(3), tf.random.normal((2, 4, 4, 12))
    traced = tf.function(lambda x: layer(layer(x))).get_concrete_function(tf.TensorSpec((None, 4, 4, 12)))
    frozen = convert_variables_to_constants_v2(traced)
    with tf.GradientTape() as tape:
        tape.watch(given)
        total = tf.reduce_sum(frozen(given)[0] ** 2)
    np.testing.assert_allclose(tape.gradient(total, given), 2 * given, rtol=1e-6)


@pytest.mark.parametrize("groups", [0, -3, "3", None, 3.0, 5])
def test_wrong_groups_are_named_by_the_layer(groups: Any) -> None:
    with pytest.raises(ValueError, match="groups="):
        layers.ChannelShuffle(groups)(np.zeros((1, 2, 2, 12), "float32"))


def test_xla_compiles_what_the_core_does_not_shuffle() -> None:
    import tensorflow as tf

    inputs = keras.Input((2, 2, 12))
    for options in ({"dtype": "float16"}, {"algorithm": "native"}, {"data_format": "channels_first"}):
        layer = layers.ChannelShuffle(2, **options)
        model = keras.Model(inputs, layer(inputs))
        model.compile(jit_compile=True)
        assert model.jit_compile
        assert layers.ChannelShuffle.from_config(layer.get_config()).algorithm == layer.algorithm
    assert not layers.ChannelShuffle(2).supports_jit
    native = tf.function(layers.ChannelShuffle(2, algorithm="native"), jit_compile=True)
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 12)).astype("float32")
    np.testing.assert_array_equal(native(x), dealt(x, 2))
    with pytest.raises(ValueError, match="algorithm='core': must be one of auto, native"):
        layers.ChannelShuffle(2, algorithm="core")
