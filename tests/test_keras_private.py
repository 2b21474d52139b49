"""Every private name of Keras that the package uses still does what it is used for: a failure names what broke.

It needs Keras and these names alone, so that a new Keras is judged before anything that is built on them.
"""

import importlib.util
import inspect
import sys
import tempfile
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.utils import module_utils

from groupwise import keras_private

BACKEND = keras.backend.backend()


def is_ours(name: str, value: Any) -> bool:
    return value.__module__ == keras_private.__name__ and not name.startswith("_")


NAMES = sorted(
    name
    for name, value in vars(keras_private).items()
    if name in ("RUN_STATE", "Logs") or (inspect.isroutine(inspect.unwrap(value)) and is_ours(name, value))
)


@pytest.mark.parametrize("name", NAMES)
def test_keras_still_has(name: str) -> None:
    check = getattr(Checks, name, None)
    assert check is not None, f"Checks has no {name}"
    try:
        check()
    except Exception as error:
        said = (inspect.getdoc(getattr(keras_private, name)) or name).splitlines()[0]
        raise AssertionError(f"Keras {keras.__version__} broke groupwise.keras_private.{name}: {said}") from error


def model_of(*layers: Any) -> Any:
    """Return a functional model that calls layers one after the other."""
    inputs = keras.Input((3,), name="x")
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def variable(name: str = "v") -> Any:
    return keras.Variable(np.ones(2, "float32"), name=name)


def numbers(variable: Any) -> list[float]:
    values: list[float] = keras.ops.convert_to_numpy(variable).tolist()
    return values


class Checks:
    """What each name is used for, in a function of its name."""

    @staticmethod
    def RUN_STATE() -> None:  # noqa: N802
        model, ones = model_of(keras.layers.Dense(1)), np.ones((2, 3), "float32")
        model.compile("sgd", "mse")
        before = {*vars(model)}
        model.fit(ones, ones[:, :1], verbose=0)
        model.predict(ones, verbose=0)
        keras_private.replace_run(model, print)
        left = {name for name in vars(model).keys() - before if name.startswith("_")}
        assert "_run_through_graph" in left
        assert "_jax_state" in left or BACKEND != "jax"
        assert left <= {*keras_private.RUN_STATE}

    @staticmethod
    def layers_within() -> None:
        inner = keras.layers.Dense(1)
        outer = keras.layers.TimeDistributed(inner)
        assert keras_private.layers_within(outer) == [outer, inner]
        assert keras_private.layers_within(outer, include_self=False) == [inner]

    @staticmethod
    def own_trainable() -> None:
        assert not keras_private.own_trainable(keras.layers.Dense(1, trainable=False))

    @staticmethod
    def set_own_trainable() -> None:
        model = model_of(keras.layers.Dense(1))
        keras_private.set_own_trainable(model, False)
        assert not model.trainable
        assert model.layers[1].trainable

    @staticmethod
    def own_trainable_variables() -> None:
        layer = keras.layers.BatchNormalization()
        layer.build((None, 3))
        layer.trainable = False
        assert [each.name for each in keras_private.own_trainable_variables(layer)] == ["gamma", "beta"]

    @staticmethod
    def lambda_output_shape() -> None:
        assert keras_private.lambda_output_shape(keras.layers.Lambda(abs, output_shape=(3,))) == (3,)

    @staticmethod
    def is_of_keras() -> None:
        assert keras_private.is_of_keras(keras.layers.Dense)
        assert keras_private.is_of_keras(keras.Model.call)
        assert not keras_private.is_of_keras(Checks)

    @staticmethod
    def graph_of() -> None:
        sequence = keras.Sequential([keras.layers.Dense(1)])
        assert keras_private.graph_of(sequence) is None
        sequence.build((None, 3))
        assert keras_private.graph_of(sequence).inputs == sequence.inputs
        model = model_of(keras.layers.Dense(1))
        assert keras_private.graph_of(model) is model

    @staticmethod
    def has_calls() -> None:
        class Program(keras.Model):
            pass

        assert keras_private.has_calls(model_of(keras.layers.Dense(1)))
        assert not keras_private.has_calls(Program())

    @staticmethod
    def calls_by_depth() -> None:
        shared = keras.layers.Dense(3)
        model = model_of(shared, shared)
        depths = keras_private.calls_by_depth(model)
        assert sorted(depths) == [0, 1, 2]
        (start,), (call,) = depths[2], depths[0]
        assert start.is_input
        assert not call.is_input
        assert call.operation is shared
        assert call.outputs[0] is model.outputs[0]
        read = call.input_tensors[0]
        assert call.arguments.args == (read,)
        assert call.arguments.keras_tensors == [read]
        assert call.arguments.fill_in({id(read): 7})[0] == (7,)

    @staticmethod
    def calls_of() -> None:
        shared = keras.layers.Dense(3)
        model = model_of(shared, shared)
        first, second = keras_private.calls_of(shared)
        assert first.input_tensors[0] is model.inputs[0]
        assert second.outputs[0] is model.outputs[0]

    @staticmethod
    def origin_of() -> None:
        shared = keras.layers.Dense(3)
        assert keras_private.origin_of(model_of(shared, shared).outputs[0]) == (shared, 1, 0)

    @staticmethod
    def structures() -> None:
        inputs = keras.Input((3,), name="given")
        model = keras.Model({"given": inputs}, [inputs + 1])
        taken, made = keras_private.structures(model)
        assert list(taken) == ["given"]
        assert isinstance(made, list)

    @staticmethod
    def fill_sequence() -> None:
        model = model_of(keras.layers.Dense(2))
        sequence = keras.Sequential()
        keras_private.fill_sequence(sequence, model.layers, model)
        assert sequence.layers == model.layers[1:]
        assert sequence.outputs[0] is model.layers[1].output
        assert sequence(np.ones((1, 3), "float32")).shape == (1, 2)

    @staticmethod
    def replace_run() -> None:
        model = model_of(keras.layers.Dense(2))
        keras_private.replace_run(model, lambda inputs, *_, **__: "replaced")
        assert model(np.ones((1, 3), "float32")) == "replaced"

    @staticmethod
    def replaced_run() -> None:
        model = model_of(keras.layers.Dense(2))
        assert keras_private.replaced_run(model) is None
        keras_private.replace_run(model, print)
        assert keras_private.replaced_run(model) is print

    @staticmethod
    def run_graph() -> None:
        model = model_of(keras.layers.Dense(2))
        images = keras.ops.ones((1, 3))
        expected = keras.ops.convert_to_numpy(model(images))
        keras_private.replace_run(model, print)
        outputs = keras_private.run_graph(model, images, lambda operation: operation)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(outputs), expected)

    @staticmethod
    def held_value() -> None:
        assert keras.ops.convert_to_numpy(keras_private.held_value(variable())).tolist() == [1, 1]
        with keras_private.forgetting_variables(), keras.StatelessScope(initialize_variables=False):
            assert keras_private.held_value(keras.Variable("zeros", (2,))) is None

    @staticmethod
    def initialize() -> None:
        with keras_private.forgetting_variables(), keras.StatelessScope(initialize_variables=False):
            own, given = (keras.Variable("ones", (2,)) for _ in range(2))
        keras_private.initialize(own)
        keras_private.initialize(given, lambda shape, dtype: keras.ops.full(shape, 5, dtype))
        assert [numbers(each) for each in (own, given)] == [[1, 1], [5, 5]]

    @staticmethod
    def forgetting_variables() -> None:
        with keras_private.forgetting_variables(), keras.StatelessScope(initialize_variables=False):
            forgotten = keras.Variable("zeros", (2,))
        with keras.StatelessScope():
            keras.Variable("zeros", (2,))
        assert keras_private.held_value(forgotten) is None

    @staticmethod
    def name_in_graphs() -> None:
        if BACKEND != "tensorflow":
            pytest.skip("the graphs are TensorFlow's")
        import tensorflow as tf

        named = variable()
        keras_private.name_in_graphs(named, "plain")
        assert named.value.name == "plain:0"
        saved = tf.Module()
        saved.variable = named.value
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(saved, folder)
            assert tf.saved_model.load(folder).variable.name == "plain:0"

    @staticmethod
    def compile_arguments() -> None:
        model, loss = model_of(keras.layers.Dense(1)), keras.losses.MeanSquaredError()
        model.compile("sgd", loss, metrics=["mae"])
        given = keras_private.compile_arguments(model)
        assert given["loss"] is loss
        assert given["metrics"] == ["mae"]
        assert {"optimizer", "weighted_metrics"} <= given.keys()

    @staticmethod
    def built_for() -> None:
        optimizer, trained = keras.optimizers.SGD(), [variable()]
        optimizer.build(trained)
        assert keras_private.built_for(optimizer) == trained

    @staticmethod
    def moving_averages() -> None:
        optimizer, trained = keras.optimizers.SGD(use_ema=True), [variable()]
        optimizer.build(trained)
        assert [each.shape for each in keras_private.moving_averages(optimizer)] == [(2,)]

    @staticmethod
    def replace_steps() -> None:
        optimizer, variables = keras.optimizers.SGD(0.5, weight_decay=0.5), [variable("one"), variable("other")]
        optimizer.build(variables)

        def update(step: Any, gradients: Any, variables: Any, rate: Any) -> None:
            step(gradients[:1], variables[:1], rate)

        keras_private.replace_steps(optimizer, update, lambda step, variables: step(variables[1:]))
        optimizer.apply([keras.ops.ones(2), keras.ops.ones(2)])
        assert [numbers(each) for each in variables] == [[0.5, 0.5], [0.75, 0.75]]

    @staticmethod
    def without_weight_decay() -> None:
        optimizer, variables = keras.optimizers.SGD(weight_decay=0.1), [variable(), variable()]
        assert keras_private.without_weight_decay(optimizer, variables) == ([], None)
        optimizer.exclude_from_weight_decay([variables[1]], ["bias"])
        places, pattern = keras_private.without_weight_decay(optimizer, variables)
        assert places == [1]
        assert pattern.search("bias")

    @staticmethod
    def set_weight_decay_pattern() -> None:
        optimizers = [keras.optimizers.SGD(weight_decay=0.1) for _ in range(2)]
        optimizers[0].exclude_from_weight_decay(var_names=["v"])
        _, pattern = keras_private.without_weight_decay(optimizers[0], [])
        optimizers[1].exclude_from_weight_decay([])
        keras_private.set_weight_decay_pattern(optimizers[1], pattern)
        left_alone, decayed = variable("v"), variable("w")
        optimizers[1].build([left_alone, decayed])
        optimizers[1].apply([keras.ops.zeros(2)] * 2, [left_alone, decayed])
        assert numbers(left_alone) == [1, 1]
        assert numbers(decayed) != [1, 1]

    @staticmethod
    def tensorflow_operations() -> None:
        if BACKEND != "tensorflow":
            pytest.skip("the operations are TensorFlow's")
        operations = keras_private.tensorflow_operations()
        own = operations.argmax
        try:
            operations.argmax = lambda *_, **__: "replaced"
            assert keras.ops.argmax(keras.ops.ones(3)) == "replaced"
        finally:
            operations.argmax = own
        assert callable(operations.argmin)
        assert callable(operations.signbit)

    @staticmethod
    def seeding_generators() -> None:
        if BACKEND != "torch":
            return
        import torch

        expected = numbers(keras.random.normal((3,), seed=keras.random.SeedGenerator(5)))
        seeds = []

        def seeded(seed: Any) -> Any:
            seeds.append(seed)
            return torch.Generator().manual_seed(int(seed))

        with keras_private.seeding_generators(seeded):
            assert numbers(keras.random.normal((3,), seed=keras.random.SeedGenerator(5))) == expected
        assert len(seeds) == 1
        assert isinstance(seeds[0], torch.Tensor)
        assert numbers(keras.random.normal((3,), seed=keras.random.SeedGenerator(5))) == expected
        assert len(seeds) == 1

    @staticmethod
    def attributes_of_models() -> None:
        model, ones = model_of(keras.layers.Dense(1)), np.ones((2, 3), "float32")
        model.compile("sgd", "mse")
        model.fit(ones, ones[:, :1], verbose=0)
        assert vars(model).keys() <= keras_private.attributes_of_models()
        model.own = 1
        assert "own" not in keras_private.attributes_of_models()

    @staticmethod
    def is_stateless() -> None:
        assert not keras_private.is_stateless()
        with keras.StatelessScope():
            assert keras_private.is_stateless()

    @staticmethod
    def global_seeds() -> None:
        keras.utils.set_random_seed(4)
        keras.random.normal((1,))
        first = keras_private.global_seeds()
        keras.random.normal((1,))
        assert isinstance(first, keras.random.SeedGenerator)
        assert keras_private.global_seeds() is first

    @staticmethod
    def Logs() -> None:  # noqa: N802
        model, ones = model_of(keras.layers.Dense(1)), np.ones((2, 3), "float32")
        model.compile("sgd", "mse", metrics=["mae"])
        returned = model.test_on_batch(ones, ones[:, :1], return_dict=True)
        expected = {name: float(value) for name, value in returned.items()}
        logs = keras_private.Logs()
        with logs.as_tensors():
            found = model.get_metrics_result()
        assert all(keras.ops.is_tensor(value) for value in found.values())
        assert {name: float(value) for name, value in logs.as_keras(found).items()} == pytest.approx(expected)
        assert all(isinstance(value, float) for value in logs.as_keras(found).values()) == logs.are_numbers

    @staticmethod
    def is_rematerialised() -> None:
        with keras.RematScope():
            assert keras_private.is_rematerialised(keras.layers.Dense(1))
        assert not keras_private.is_rematerialised(keras.layers.Dense(1))

    @staticmethod
    def has_mask() -> None:
        table, words = keras.layers.Embedding(3, 2, mask_zero=True), keras.ops.convert_to_tensor([[1, 0]])
        assert keras_private.has_mask(table(words))
        assert not keras_private.has_mask(keras.ops.ones((1, 2)))

    @staticmethod
    def rate_is_a_function() -> None:
        rates = 0.1, keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9), lambda: 0.1
        assert [keras_private.rate_is_a_function(keras.optimizers.SGD(rate)) for rate in rates] == [False, False, True]

    @staticmethod
    def settings() -> None:
        layer = keras.layers.Dense(3, activation="relu")
        model_of(layer)
        assert {"units", "activation", "use_bias", "_trainable", "_dtype_policy"} <= {*keras_private.settings(layer)}
        kernel = layer.kernel
        before = {name: getattr(kernel, name) for name in keras_private.settings(kernel)}
        assert before["_trainable"] is True
        assert before["_regularizer"] is before["_constraint"] is None
        kernel.trainable, kernel.regularizer = False, keras.regularizers.L2(0.1)
        changed = {name for name, value in before.items() if getattr(kernel, name) is not value}
        assert {"_trainable", "_regularizer"} <= changed
        assert np.shape(keras.ops.convert_to_numpy(before["_value"])) == (3, 3)

    @staticmethod
    def without_tensorflow() -> None:
        before = "tensorflow" in sys.modules
        with keras_private.without_tensorflow():
            keras.utils.set_random_seed(1)
            assert module_utils.tensorflow.available == before
        assert ("tensorflow" in sys.modules) == before
        assert module_utils.tensorflow.available == (importlib.util.find_spec("tensorflow") is not None)
