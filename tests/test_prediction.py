"""TensorFlow and JAX: the lean `predict_on_batch` returns, and leaves behind, what Keras's does."""

from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.models import steps

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="on PyTorch all steps are recorded")
ROWS = np.random.default_rng(1).normal(size=(4, 5)).astype("float32")


class Counts(keras.layers.Layer):
    """Counts its calls, in predictions too."""

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs: Any) -> Any:
        self.calls.assign(self.calls + 1)
        return inputs + self.calls


class Draws(keras.layers.Layer):
    """Drops out in predictions too."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, inputs: Any) -> Any:
        return keras.random.dropout(inputs, 0.5, seed=self.seeds)


def keras_predicts(model: Any, x: Any) -> Any:
    return type(model).predict_on_batch(model, x)


def of_rows(*layers: Any) -> Any:
    inputs = keras.Input((5,))
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    steps.run_recorded(model)
    return model


def state(model: Any) -> list[np.ndarray]:
    return [np.array(variable.value) for variable in model.variables]


def is_lean(model: Any) -> bool:
    """Return whether a prediction hands its variables' memory on as it is."""
    before = [variable.value for variable in model.variables]
    model.predict_on_batch(ROWS)
    return all(variable.value is value for variable, value in zip(model.variables, before, strict=True))


def test_a_network_predicts_as_by_keras_and_leaves_its_variables_alone() -> None:
    model = models.create("mobilenetv1_100", input_shape=(32, 32, 3), num_classes=4)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    expected, before = keras_predicts(model, images), state(model)
    found = model.predict_on_batch(images)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable
    assert isinstance(found, np.ndarray)
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_other_weights_and_other_layers_are_seen() -> None:
    dense = keras.layers.Dense(3)
    model = of_rows(dense)
    assert BACKEND != "jax" or is_lean(model)
    model.predict_on_batch(ROWS)
    dense.set_weights([np.ones((5, 3)), np.arange(3.0)])
    np.testing.assert_allclose(
        model.predict_on_batch(ROWS), ROWS.sum(1, keepdims=True) + np.arange(3.0), rtol=1e-5, atol=1e-6
    )
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones((2, 3)))
    np.testing.assert_allclose(model.predict_on_batch(ROWS), keras_predicts(model, ROWS), rtol=1e-6)


def test_frozen_layers_predict_on() -> None:
    model = of_rows(keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(2))
    before = model.predict_on_batch(ROWS)
    model.trainable = False
    np.testing.assert_array_equal(model.predict_on_batch(ROWS), before)


def test_what_a_prediction_changes_is_kept() -> None:
    model, other = (of_rows(Counts(), keras.layers.Dense(2, kernel_initializer="ones")) for _ in range(2))
    for _ in range(3):
        np.testing.assert_array_equal(model.predict_on_batch(ROWS), keras_predicts(other, ROWS))
    assert float(model.layers[1].calls) == 3


def test_random_layers_draw_on() -> None:
    model, other = of_rows(Draws()), of_rows(Draws())
    drawn = [model.predict_on_batch(ROWS) for _ in range(3)]
    assert not np.array_equal(drawn[0], drawn[1])
    for found in drawn:
        np.testing.assert_array_equal(found, keras_predicts(other, ROWS))


def test_several_inputs_and_outputs() -> None:
    inputs = {"a": keras.Input((5,), name="a"), "b": keras.Input((5,), name="b")}
    model = keras.Model(inputs, {"sum": inputs["a"] + inputs["b"], "two": [inputs["a"] * 2.0]})
    model.predict_on_batch({"a": ROWS, "b": ROWS})  # of a model without variables, Keras's
    steps.run_recorded(model)
    found = model.predict_on_batch({"a": ROWS, "b": ROWS})
    np.testing.assert_array_equal(found["sum"], ROWS + ROWS)
    np.testing.assert_array_equal(found["two"][0], ROWS * 2)


def test_a_step_of_ones_own_is_called() -> None:
    class Own(keras.Model):
        def predict_step(self, *arguments: Any) -> Any:
            returned = super().predict_step(*arguments)
            return (returned[0] * 0 + 7, returned[1]) if BACKEND == "jax" else returned * 0 + 7

    inputs = keras.Input((5,))
    model = Own(inputs, keras.layers.Dense(1)(inputs))
    steps.run_recorded(model)
    assert "predict_on_batch" not in vars(model)
    np.testing.assert_array_equal(model.predict_on_batch(ROWS), np.full((4, 1), 7, "float32"))


@pytest.mark.parametrize("options", [{"run_eagerly": True}, *[{"jit_compile": False}] * (BACKEND == "jax")])
def test_a_model_that_is_not_compiled_runs_as_keras_runs_it(options: dict[str, bool]) -> None:
    calls = []

    class Says(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            calls.append(inputs)
            return inputs

    model = of_rows(Says(), keras.layers.Dense(2))
    model.compile(**options)
    before = len(calls)
    for _ in range(2):
        model.predict_on_batch(ROWS)
    assert len(calls) == before + 2


def test_in_a_fit_callbacks_predict_by_the_weights_of_the_moment() -> None:
    seen = []
    model = of_rows(keras.layers.Dense(2))

    class Predicts(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            kernel, bias = (np.array(value) for value in model.get_weights())
            seen.append(np.abs(model.predict_on_batch(ROWS) - (ROWS @ kernel + bias)).max())

    model.compile("sgd", "mse")
    model.fit(ROWS, np.ones((4, 2)), epochs=3, verbose=0, callbacks=[Predicts()])
    assert len(seen) == 3
    assert max(seen) < 1e-5


def test_batches_of_many_shapes_and_types() -> None:
    inputs = keras.Input((None, 5))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    steps.run_recorded(model)
    random = np.random.default_rng(5)
    for number in range(40):
        x = random.normal(size=(1 + number % 3, 1 + number, 5)).astype("float64" if number % 2 else "float32")
        np.testing.assert_allclose(model.predict_on_batch(x), keras_predicts(model, x), rtol=1e-6)
    tensor = keras.ops.ones((2, 4, 5))
    np.testing.assert_array_equal(model.predict_on_batch(tensor), keras_predicts(model, tensor))


def test_a_trainable_flag_counts_where_a_layer_looks_at_it() -> None:
    class Looks(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

        def call(self, inputs: Any) -> Any:
            if not self.trainable:
                self.scale.assign(self.scale + 1)
            return inputs * self.scale * (2.0 if self.trainable else 1.0)

    def numbers(predicts: Any) -> list[float]:
        layer = Looks()
        model, found = of_rows(layer), []
        for trainable in (True, False, False, True, True):
            if BACKEND == "jax":  # a graph of TensorFlow's is not traced again
                layer.trainable = trainable
            found += [float(predicts(model)[0, 0]), float(np.asarray(layer.scale))]
        return found

    assert numbers(lambda model: model.predict_on_batch(ROWS)) == numbers(lambda model: keras_predicts(model, ROWS))


def test_a_function_of_ones_own_is_called() -> None:
    model = of_rows(keras.layers.Dense(1))
    model.predict_on_batch(ROWS)
    sevens = np.full((4, 1), 7, "float32")
    if BACKEND == "jax":
        model.predict_function = lambda state, data: (sevens, state)
    else:
        model.predict_function = lambda data: keras.ops.convert_to_tensor(sevens)
    np.testing.assert_array_equal(model.predict_on_batch(ROWS), sevens)
