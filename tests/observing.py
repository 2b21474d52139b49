"""What can be observed of a model beside its numbers: a table of kinds of facts, each with the function that looks.

A fact is found at a place: the layers' names from the model inward; within a layer that is no model, a layer's number.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.subjects import Data, Facts, Subject, array_like, graph_of, numpy_of


def _names(subject: Subject) -> Facts:
    return {place: True for place, _ in subject.layers()}


def _class(subject: Subject) -> Facts:
    # A method that was overridden shows in the class alone.
    return {place or "the model": type(model).__name__ for place, model in subject.graphs.items()}


def _structure(subject: Subject) -> Facts:
    model = subject.model
    facts: Facts = {}
    for place, graph in subject.graphs.items():
        facts |= {
            f"{place} inputs": keras.tree.map_structure(lambda x: (x.name, x.shape, x.dtype), graph_of(graph).input),
            f"{place} outputs": keras.tree.map_structure(lambda x: (x.shape, x.dtype), graph_of(graph).output),
        }
    facts["returned"] = keras.tree.map_structure(
        lambda y: (tuple(y.shape), keras.backend.standardize_dtype(y.dtype)), subject.inference[0]
    )
    return {**facts, "output_names": graph_of(model).output_names, "name": model.name}


def _results(subject: Subject) -> Facts:
    return _by_path(subject.inference[0])


def _by_path(struct: Any) -> Facts:
    return {str(i): numpy_of(y) for i, y in enumerate(keras.tree.flatten(struct))}


def _values(subject: Subject) -> Facts:
    """Observe what each layer that is called once gives, in the model and in those within it."""
    facts: Facts = {}
    for place, graph in subject.graphs.items():
        prefix = f"{place}/" if place else ""
        outputs = {}
        for at, layer in subject.layers():
            is_here = at.startswith(prefix) and "/" not in at[len(prefix) :]
            if is_here and not isinstance(layer, keras.Model):
                with contextlib.suppress(AttributeError, ValueError):  # it is called not here, or several times
                    outputs[at] = layer.output
        facts |= _probed(graph, outputs, subject if not place else None)
    return facts


def _probed(graph: keras.Model, outputs: dict[str, Any], subject: Subject | None) -> Facts:
    random = np.random.default_rng(6)
    arrays = keras.tree.flatten(subject.data.inputs) if subject else [array_like(random, x) for x in graph.inputs]
    try:
        returned = keras.Model(list(graph.inputs), outputs)(arrays, training=False)
    except ValueError:  # some are of another graph: which?
        if len(outputs) == 1:
            return {}
        facts: Facts = {}
        for place, output in outputs.items():
            facts |= _probed(graph, {place: output}, subject)
        return facts
    # In the types that the layers declare, which Keras's own do not keep to where they do not cast.
    return {
        f"{place}{f' {i}' if i else ''}": numpy_of(keras.ops.cast(value, declared.dtype))
        for place, output in returned.items()
        for i, (value, declared) in enumerate(zip(*map(keras.tree.flatten, (output, outputs[place])), strict=True))
    }


def _policies(subject: Subject) -> Facts:
    found = [(place, layer) for place, layer in subject.layers() if not isinstance(layer, layers.InputLayer)]
    facts: Facts = {place: (layer.dtype_policy.name, layer.autocast) for place, layer in found}
    return {**facts, "the model": subject.model.dtype_policy.name}


def _trainable(subject: Subject) -> Facts:
    facts: Facts = {place: layer.trainable for place, layer in subject.layers() if layer.weights}
    return {**facts, "the model": subject.model.trainable}


def _counts(subject: Subject) -> Facts:
    model = subject.model
    return {
        "trainable numbers": sum(int(np.prod(v.shape)) for v in model.trainable_weights),
        "other numbers": sum(int(np.prod(v.shape)) for v in model.non_trainable_weights),
    }


def _cost(subject: Subject) -> Facts:
    return {"losses": np.array(subject.inference[1])}


def _penalties(subject: Subject) -> Facts:
    """Observe the penalties of the weights by kind and whether they count, and the losses that are no weights'."""
    model, (_, total) = subject.model, subject.inference
    facts: Facts = {}
    counted = 0.0
    for variable in model.weights:
        if getattr(variable, "regularizer", None) is None:
            continue
        penalty = float(variable.regularizer(variable))
        kind = variable.name.rsplit("_", 1)[-1]
        key = f"{kind}{'' if variable.trainable else ', frozen'}"
        facts[key] = facts.get(key, 0.0) + penalty
        counted += penalty if variable.trainable else 0
    facts["activities and own"] = total - counted
    return {key: np.array(value) for key, value in facts.items()}


def _constraints(subject: Subject) -> Facts:
    return {
        f"{place} {variable.name}": _described(variable.constraint)
        for place, layer in subject.layers()
        for variable in getattr(layer, "_trainable_variables", [])
        if getattr(variable, "constraint", None) is not None
    }


def _described(value: Any) -> Any:
    """Return something that can be compared in place of a loss, an optimizer or the like."""
    if isinstance(value, dict):
        return {key: _described(each) for key, each in value.items() if key not in ("name", "learning_rate")}
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if hasattr(value, "get_config"):
        return [type(value).__name__, _described(value.get_config())]
    if isinstance(value, np.generic):
        return value.item()
    return value.__qualname__ if callable(value) else value


def _compiled(subject: Subject) -> Facts:
    model = subject.model
    facts: Facts = {"compiled": model.compiled}
    if not model.compiled:
        return facts
    config = model._compile_config.config
    facts |= {name: _described(value) for name, value in config.items() if name != "optimizer"}
    optimizer = model.optimizer
    facts["optimizer"] = _described(optimizer)
    schedule = getattr(optimizer, "inner_optimizer", optimizer)._learning_rate
    facts["learning rate"] = _described(schedule) if has_schedule(optimizer) else None
    if not has_schedule(optimizer):
        facts["learning rate now"] = numpy_of(optimizer.learning_rate)
    return facts


def has_schedule(optimizer: Any) -> bool:
    """Return whether an optimizer's learning rate follows a schedule."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return isinstance(inner._learning_rate, keras.optimizers.schedules.LearningRateSchedule)


def _optimizer(subject: Subject) -> Facts:
    model = subject.model
    return {"steps": int(numpy_of(model.optimizer.iterations))} if model.compiled else {}


def _state(subject: Subject) -> Facts:
    """Observe what layers know that is no weight."""
    facts: Facts = {}
    for place, layer in subject.layers():
        weights = {id(weight) for weight in layer.weights}
        own = [v for v in layer.variables if id(v) not in weights and not layer._layers]
        facts |= {f"{place} {v.name}": numpy_of(v) for v in own}
        if isinstance(layer, layers.StringLookup | layers.IntegerLookup):
            facts[f"{place} vocabulary"] = list(layer.get_vocabulary())
        if isinstance(layer, layers.Discretization):
            facts[f"{place} boundaries"] = list(layer.bin_boundaries)
        if type(layer) is layers.Normalization:
            facts[f"{place} mean"], facts[f"{place} variance"] = numpy_of(layer.mean), numpy_of(layer.variance)
        if _is_own(layer) and not isinstance(layer, keras.Model):
            store: dict[str, Any] = {}
            layer.save_own_variables(store)
            facts |= {f"{place} {name}": np.asarray(value) for name, value in store.items()}
    return facts


def _is_own(layer: Any) -> bool:
    return not type(layer).__module__.startswith(("keras", "groupwise"))


_REWRITTEN = (
    *(keras.Model, layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.BatchNormalization),
    *(layers.MaxPooling2D, layers.AveragePooling2D, layers.ReLU, layers.Activation, layers.Dense),
)


def _settings(subject: Subject) -> Facts:
    """Observe the configurations of layers that no rewrite touches."""
    return {
        place: {"class": type(layer).__name__, **{k: v for k, v in layer.get_config().items() if k != "trainable"}}
        for place, layer in subject.layers()
        if not isinstance(layer, _REWRITTEN) and not layer._layers
    }


def _attributes(subject: Subject) -> Facts:
    """Observe what a user set on the models, and variables that belong to no layer."""
    facts: Facts = {}
    for place, model in subject.graphs.items():
        for name, value in vars(model).items():
            if isinstance(value, str | int | float | list | tuple | dict) and not name.startswith("_"):
                facts[f"{place} {name}"] = list(value) if isinstance(value, list | tuple) else value
            elif isinstance(value, layers.Layer) and not name.startswith("_"):
                facts[f"{place} {name}"] = any(value is layer for layer in model.layers)
        for variable in (*model._trainable_variables, *model._non_trainable_variables):
            facts[f"{place} {variable.name}"] = numpy_of(variable)
    facts |= {f"{place} note": layer.note for place, layer in subject.layers() if hasattr(layer, "note")}
    return {key: value for key, value in facts.items() if key.split()[-1] not in _USUAL}


_USUAL = {
    *("built", "supports_masking", "supports_jit", "stop_training", "autocast", "input_names", "output_names"),
    *("steps_per_execution", "run_eagerly", "jit_compile", "seed", "test_function", "train_function", "architecture"),
    *("call_signature_parameters", "loss"),
}


def _evaluation(subject: Subject) -> Facts:
    model = subject.model
    if not model.compiled:
        return {}
    with _as_before(model), _eagerly(model):
        returned = model.test_on_batch(subject.data.inputs, subject.data.targets, return_dict=True)
    return {name: np.array(float(value)) for name, value in returned.items()}


def stepped(model: keras.Model, data: Data) -> None:
    """Take one step of training, without compiling it."""
    for variable in model.trainable_variables:
        if hasattr(variable.value, "grad"):
            variable.value.grad = None  # Keras's zero_grad passes over layers that another model has taken up
    keras.utils.set_random_seed(3)
    with _eagerly(model):
        model.train_on_batch(data.inputs, data.targets)


def _training(subject: Subject) -> Facts:
    """Observe the outputs in training, and the moving statistics after it: ours are float32 where Keras's are half."""
    with _as_before(subject.model):
        keras.utils.set_random_seed(3)  # PyTorch's dropout without a seed
        facts = _by_path(subject.model(subject.data.inputs, training=True))
        for place, layer in subject.layers():
            if isinstance(layer, layers.BatchNormalization):
                wide = "float64" if layer.variable_dtype == "float64" else "float32"
                facts[f"{place} mean"] = numpy_of(layer.moving_mean).astype(wide)
                facts[f"{place} variance"] = numpy_of(layer.moving_variance).astype(wide)
    return facts


def _step(subject: Subject) -> Facts:
    """Observe the outputs after a step of training with a fresh optimizer."""
    model, data = subject.model, subject.data
    trained = model
    if not model.compiled:
        if any(keras.backend.standardize_dtype(y.dtype).startswith("int") for y in model.outputs):
            return {}
        trained = keras.Model(list(model.inputs), list(model.outputs))
        trained.compile(keras.optimizers.SGD(0.01), "mse")
        data = Data(keras.tree.flatten(data.inputs), keras.tree.flatten(data.targets))
    with _as_before(model):
        for variable in trained.optimizer.variables if model.compiled else []:
            if variable.name not in ("learning_rate", "dynamic_scale"):
                variable.assign(np.zeros(variable.shape, variable.dtype))
        stepped(trained, data)
        return _by_path(model(subject.data.inputs, training=False))


def variables_of(model: keras.Model) -> list[Any]:
    """Return a model's variables, and its optimizer's."""
    return [*model.variables, *(model.optimizer.variables if model.compiled else [])]


@contextlib.contextmanager
def _as_before(model: keras.Model) -> Iterator[None]:
    """Give a model's variables the values back that they have now, the optimizer's and the metrics' too."""
    own = variables_of(model)
    values = [numpy_of(variable) for variable in own]
    try:
        yield
    finally:
        for variable, value in zip(own, values, strict=True):
            variable.assign(value)
        if model.compiled:
            model.reset_metrics()


@contextlib.contextmanager
def _eagerly(model: keras.Model) -> Iterator[None]:
    """Let a model train and evaluate in the way that is soonest done."""
    before = model.run_eagerly
    try:
        # JAX compiles every operation that is not within a compiled function.
        model.run_eagerly = keras.backend.backend() != "jax"
        model.train_function = model.test_function = None
        yield
    finally:
        model.run_eagerly, model.train_function, model.test_function = before, None, None


def _saved(subject: Subject) -> Facts:
    """Observe what a file of the model gives back."""
    loaded = subject.reloaded
    return {**_by_path(loaded(subject.data.inputs, training=False)), "class": type(loaded).__name__}


def _saved_flags(subject: Subject) -> Facts:
    return _trainable(Subject.of(subject.reloaded, subject.data, subject))


def _cloned(subject: Subject) -> Facts:
    clone = keras.models.clone_model(subject.model)
    clone.set_weights(subject.model.get_weights())
    return _by_path(clone(subject.data.inputs, training=False))


OBSERVED: dict[str, Callable[[Subject], Facts]] = {
    "name": _names,
    "class": _class,
    "structure": _structure,
    "result": _results,
    "value": _values,
    "policy": _policies,
    "trainable": _trainable,
    "count": _counts,
    "cost": _cost,
    "penalty": _penalties,
    "constraint": _constraints,
    "compiled": _compiled,
    "optimizer": _optimizer,
    "state": _state,
    "settings": _settings,
    "attribute": _attributes,
}
"""The kinds of facts that cost a run or none."""
TRAINED: dict[str, Callable[[Subject], Facts]] = {"training": _training, "evaluation": _evaluation, "step": _step}
"""Those of training: on JAX they compile for seconds."""
THOROUGH = {"saved": _saved, "saved flags": _saved_flags, "clone": _cloned, **TRAINED}
SOFT = ("trainable", "settings", "saved flags")
"""Kinds that say nothing of a layer whose name another class of layer bears now, that gives its value."""
PLACED = ("policy", "constraint", *SOFT)
"""Kinds that say nothing of a layer that is gone: "name" does."""
