"""Every private name of Keras that this package uses: what for, the public way that is missing, and the versions.

Nothing else here imports `keras.src` or reads an attribute of Keras's that begins with an underscore. When a new Keras
breaks one of these, `tests/test_keras_private.py` says which. All were seen with Keras 3.12 to 3.15, unless a function
says otherwise.
"""

import contextlib
import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras.src.backend.common import global_state, stateless_scope
from keras.src.utils import module_utils, python_utils

RUN_STATE = ("_eval_epoch_iterator", "_jax_state", "_run_through_graph")
"""Attributes of a model that ran: what it was judged on, its values on JAX, and what `replace_run` puts there."""

# Layers


def layers_within(layer: Any, include_self: bool = True) -> list[Any]:
    """Return a layer and all layers within it, outer ones first: `Layer._flatten_layers`.

    Missing: the layers that a layer, rather than a model, is made of.
    """
    return list(layer._flatten_layers(include_self=include_self))


def own_trainable(layer: Any) -> bool:
    """Return what a layer's `trainable` was set to: `Layer._trainable`. Missing: a getter that looks at it alone."""
    return bool(layer._trainable)


def set_own_trainable(layer: Any, value: bool) -> None:
    """Set a layer's `trainable` and leave the layers within alone: `Layer._trainable`. Missing: such a setter."""
    layer._trainable = value


def own_trainable_variables(layer: Any) -> list[Any]:
    """Return the variables that a layer itself made as trainable, frozen or not: `Layer._trainable_variables`.

    Missing: `trainable_variables` leaves out what is frozen, and adds what the layers within have.
    """
    return list(layer._trainable_variables)


def lambda_output_shape(layer: Any) -> Any:
    """Return the `output_shape` that a `keras.layers.Lambda` was given: `Lambda._output_shape`.

    Missing: the layer's configuration has it, but only together with the function as code.
    """
    return layer._output_shape


def is_of_keras(kind: type | Callable[..., Any]) -> bool:
    """Return whether a class or function is Keras's own, by its module: `keras.src...`. Missing: its exported name."""
    return kind.__module__.startswith("keras.")


def settings(part: Any) -> list[str]:
    """Return the names of the attributes that say what a layer, variable, optimizer or the like computes.

    Of a variable `_value`, `_trainable`, `_regularizer` and `_constraint`; of a layer or model all but what every one
    has; of others all but `_tracker`. Missing: which attributes are Keras's notes for itself.
    """
    if isinstance(part, keras.Variable):
        return ["_value", "_trainable", "_regularizer", "_constraint"]
    noted = _noted(isinstance(part, keras.Model)) if isinstance(part, keras.Layer) else {"_tracker"}
    return [name for name in vars(part) if name not in noted]


_KEPT = {"_trainable", "_dtype_policy", "activity_regularizer", "autocast", "optimizer", "training"}
_KEPT |= {"_layers", "_parameters", "_buffers"}


@functools.cache
def _noted(of_models: bool) -> set[str]:
    # Named, since a name that Keras finds is one that a user's layer does not get.
    own = vars(keras.layers.Layer(name="layer")).keys()
    return {*own, *(attributes_of_models() if of_models else ())} - _KEPT


@functools.cache
def attributes_of_models() -> frozenset[str]:
    """Return the attributes that Keras gives every functional or sequential model, built, compiled and run.

    Missing: a list of them.
    """
    inputs, layer = keras.Input((1,), name="inputs"), keras.layers.Flatten(name="layer")
    models = (keras.Model(inputs, layer(inputs), name="model"), keras.Sequential([inputs, layer], name="model"))
    for model in models:
        model.compile(keras.optimizers.SGD(name="optimizer"), "mse", metrics=["mae"])
    # PyTorch keeps those that are layers in a dictionary of their own.
    given = (name for model in models for name in {**vars(model).get("_modules", {}), **vars(model)})
    return frozenset({*given, "history", "stop_training", "stop_evaluating", "stop_predicting", *RUN_STATE})


def global_seeds() -> Any:
    """Return the generator of seeds that operations without a seed use: "global_seed_generator" of `global_state`.

    None before its first use. Missing: a getter; since Keras 3.13 `keras.utils.set_random_seed` makes a new one.
    """
    return global_state.get_global_attribute("global_seed_generator")


def has_mask(tensor: Any) -> bool:
    """Return whether a tensor comes with a mask, which layers then use: `tensor._keras_mask`. Missing: a getter."""
    return getattr(tensor, "_keras_mask", None) is not None


def is_rematerialised(layer: Any) -> bool:
    """Return whether a layer was made in a `keras.RematScope`: `Layer._remat_mode`. Missing: a getter."""
    return getattr(layer, "_remat_mode", None) is not None


# Graphs of calls


def graph_of(model: keras.Model) -> Any:
    """Return the functional model behind a sequential one, None before it is built: `Sequential._functional`.

    Any other model is returned itself. Missing: the graph of a sequential model.
    """
    return model._functional if isinstance(model, keras.Sequential) else model


def has_calls(graph: Any) -> bool:
    """Return whether something is a functional model, whatever its class: it has `Functional._nodes_by_depth`.

    Missing: a public name of the class `Functional`.
    """
    return hasattr(graph, "_nodes_by_depth")


def calls_by_depth(graph: Any) -> dict[int, list[Any]]:
    """Return a functional model's calls by their distance from the outputs: `Functional._nodes_by_depth`.

    A call is a `keras.src.ops.node.Node`, with `operation`, `arguments`, `input_tensors`, `outputs` and `is_input`.
    Missing: the calls; `operations` names each layer once, however often it is called.
    """
    calls: dict[int, list[Any]] = graph._nodes_by_depth
    return calls


def calls_of(operation: Any) -> list[Any]:
    """Return all calls of an operation on symbolic tensors, in order: `Operation._inbound_nodes`.

    Missing: `Operation.input` and `output` know the first call alone.
    """
    return list(operation._inbound_nodes)


def origin_of(tensor: keras.KerasTensor) -> tuple[Any, int, int]:
    """Return the operation that made a symbolic tensor, by which of its calls, as which output: `_keras_history`.

    Missing: the way from a tensor to its maker.
    """
    operation, call, output = tensor._keras_history
    return operation, call, output


def structures(graph: Any) -> tuple[Any, Any]:
    """Return a functional model's inputs and outputs as it was given them: `_inputs_struct`, `_outputs_struct`.

    Missing: `Model.inputs` and `outputs` are flat lists, whatever dictionaries the model takes and gives.
    """
    return graph._inputs_struct, graph._outputs_struct


def fill_sequence(sequence: keras.Sequential, layers: Sequence[Any], graph: keras.Model) -> None:
    """Make a graph that exists an empty sequential model's: `Sequential._layers`, `Sequential._functional`.

    Missing: `Sequential.add` calls each layer again, so that `layer.output` becomes a tensor of another graph.
    """
    sequence._layers.extend(layers)
    sequence._functional, sequence.built = graph, True


def replace_run(graph: Any, run: Callable[..., Any]) -> None:
    """Let `run(inputs, operation_fn, call_fn)` be how a functional model runs: `Functional._run_through_graph`.

    Missing: a way to run a functional model otherwise that keeps its class, its graph and its file.
    """
    object.__setattr__(graph, "_run_through_graph", run)


def replaced_run(graph: Any) -> Any:
    """Return what `replace_run` gave a functional model, or None."""
    return vars(graph).get("_run_through_graph")


def run_graph(graph: Any, inputs: Any, operation_fn: Callable[[Any], Any], call_fn: Any = None) -> Any:
    """Run a functional model as its class does, whatever `replace_run` gave it: `Functional._run_through_graph`."""
    return type(graph)._run_through_graph(graph, inputs, operation_fn, call_fn)


# Variables


def held_value(variable: Any) -> Any:
    """Return what a variable itself holds, whatever a scope says; None where it has no value yet: `Variable._value`.

    Missing: to ask for `Variable.value` of one without raises, or makes one, and asks for scopes each time: 175
    microseconds for the 248 variables of a ShuffleNet.
    """
    return variable._value


def initialize(variable: Any, initializer: Callable[..., Any] | None = None) -> None:
    """Give a variable without a value one, of another initializer or its own: `Variable._deferred_initialize`.

    Missing: Keras does this for all variables at once, when the outermost scope ends.
    """
    if initializer is not None:
        variable._initializer = initializer
    variable._deferred_initialize()


@contextlib.contextmanager
def forgetting_variables() -> Iterator[None]:
    """Let Keras forget the variables that are made without values in here: `global_state`'s list of them.

    Missing: without this it gives them values when the next such scope ends.
    """
    key = "uninitialized_variables"
    waiting = list(global_state.get_global_attribute(key) or [])
    try:
        yield
    finally:
        global_state.set_global_attribute(key, waiting)


def name_in_graphs(variable: Any, name: str) -> None:
    """Give a variable on TensorFlow another name in the graphs that are traced later: `value._handle_name`.

    Missing: a setter, of Keras's variable or of TensorFlow's below it.
    """
    variable.value._handle_name = f"{name}:0"


def is_stateless() -> bool:
    """Return whether variables stand for other values in a `keras.StatelessScope`: `in_stateless_scope`.

    Missing: the same as a public function.
    """
    return bool(stateless_scope.in_stateless_scope())


# Compiling and optimizers


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Return the objects that a model was compiled with: `Model._compile_config`.

    Missing: `get_compile_config` turns them into text, which not all of them can be.
    """
    return dict(model._compile_config.config)


def built_for(optimizer: Any) -> list[Any]:
    """Return the variables that an optimizer was built for, in order: `Optimizer._trainable_variables`.

    Missing: what its own variables belong to.
    """
    return list(optimizer._trainable_variables)


def rate_is_a_function(optimizer: Any) -> bool:
    """Return whether an optimizer asks a function, no schedule, for its learning rate: `Optimizer._learning_rate`.

    Missing: `learning_rate` gives what the function returns.
    """
    rate = vars(optimizer).get("_learning_rate")
    return callable(rate) and not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)


def moving_averages(optimizer: Any) -> list[Any]:
    """Return the averages that an optimizer with `use_ema` keeps: `Optimizer._model_variables_moving_average`.

    Missing: `finalize_variable_values` overwrites the weights with them, and the weights are lost.
    """
    return list(optimizer._model_variables_moving_average)


def without_weight_decay(optimizer: Any, variables: Sequence[Any]) -> tuple[list[int], Any]:
    """Return the places of the variables that weight decay leaves out, and the pattern of names that it leaves out.

    `Optimizer._exclude_from_weight_decay`, `..._pattern` and `_var_key`. Missing: what the first two were given.
    """
    places = {optimizer._var_key(variable): place for place, variable in enumerate(variables)}
    keys = vars(optimizer).get("_exclude_from_weight_decay", ())
    return [places[key] for key in keys if key in places], vars(optimizer).get("_exclude_from_weight_decay_pattern")


def set_weight_decay_pattern(optimizer: Any, pattern: Any) -> None:
    """Give an optimizer the pattern of another one: `Optimizer._exclude_from_weight_decay_pattern`.

    Missing: `exclude_from_weight_decay` takes names and makes the pattern of them.
    """
    optimizer._exclude_from_weight_decay_pattern = pattern


def replace_steps(optimizer: Any, update: Callable[..., None], decay: Callable[..., None]) -> None:
    """Let functions of its own steps, `_backend_update_step` and `_apply_weight_decay`, be an optimizer's steps.

    Missing: a learning rate of a variable's own.
    """
    optimizer._backend_update_step = functools.partial(update, optimizer._backend_update_step)
    optimizer._apply_weight_decay = functools.partial(decay, optimizer._apply_weight_decay)


# Operations and random numbers


def tensorflow_operations() -> Any:
    """Return the module of Keras's operations on TensorFlow, whose `argmax`, `argmin` and `signbit` can be replaced.

    `keras.src.backend.tensorflow.numpy`. Missing: `keras.ops.argmax` is fixed when Keras is imported.
    """
    return importlib.import_module("keras.src.backend.tensorflow.numpy")


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """While it is entered, let Keras take TensorFlow for not installed, unless it is in use: `LazyModule._available`.

    Missing: seeding and saving import TensorFlow wherever it is installed, whatever the backend: several seconds.
    """
    before = module_utils.tensorflow._available
    if keras.backend.backend() != "tensorflow" and "tensorflow" not in sys.modules:
        module_utils.tensorflow._available = False
    try:
        yield
    finally:
        module_utils.tensorflow._available = before


@contextlib.contextmanager
def seeding_generators(seeded: Callable[[Any], Any]) -> Iterator[None]:
    """Let PyTorch's random operations of this thread draw from `seeded(seed)`: `torch_seed_generator`.

    The seed stays a tensor. Missing: a generator's seed is read as a number, which no recording can follow.
    """
    random: Any = importlib.import_module("keras.src.backend.torch.random")
    before = random.torch_seed_generator

    def torch_seed_generator(seed: Any) -> Any:
        return before(seed) if random.get_device() == "meta" else seeded(sum(random.draw_seed(seed)))

    with _replaced(random, "torch_seed_generator", torch_seed_generator):
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, own: Callable[..., Any]) -> Iterator[None]:
    """Let a module's function be another one, for this thread."""
    before, thread = getattr(module, name), threading.get_ident()
    setattr(module, name, lambda *given: (own if threading.get_ident() == thread else before)(*given))
    try:
        yield
    finally:
        setattr(module, name, before)


class Logs:
    """What a step returns, kept as tensors: `python_utils.pythonify_logs`, which Keras 3.12 calls within one.

    Missing: there, a step that leaves its metrics on the device.

    Attributes:
        are_numbers: whether Keras made numbers of them.
    """

    def __init__(self) -> None:
        self.are_numbers = False

    def as_tensors(self) -> contextlib.AbstractContextManager[None]:
        """While it is entered, let what this thread's steps return be tensors."""

        def pythonify_logs(logs: Any) -> Any:
            self.are_numbers = True
            found: dict[str, Any] = {}
            for name, value in sorted((logs or {}).items()):
                found |= pythonify_logs(value) if isinstance(value, dict) else {name: value}
            return found

        return _replaced(python_utils, "pythonify_logs", pythonify_logs)

    def as_keras(self, logs: Any) -> Any:
        """Return what Keras's step would."""
        return python_utils.pythonify_logs(logs) if self.are_numbers else logs
