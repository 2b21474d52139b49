"""All that a model means, beside its numbers: what `differences` compares of two models.

Each kind of fact is observed by one function of `OBSERVED`: a dictionary from where it was seen to what was seen. A
difference is a line "kind: where: new instead of old".
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

Facts = dict[str, Any]
"""From the place where something was seen to what it was: an array, or anything that can be compared."""
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Of the largest value, by the coarsest type that a model computes in."""
VOCABULARY = np.array(["ant", "bee", "cat", "unknown"])


@dataclass(frozen=True)
class Data:
    """A batch for a model: inputs in its structure, and targets in that of its outputs."""

    inputs: Any
    targets: Any

    @staticmethod
    def of(model: keras.Model) -> "Data":
        """Return random inputs and targets."""
        random = np.random.default_rng(5)
        inputs = keras.tree.map_structure(partial(_array, random), graph_of(model).input)
        outputs = model(inputs, training=False)
        targets = keras.tree.map_structure(lambda y: random.uniform(0, 1, y.shape).astype("float32"), outputs)
        return Data(inputs, targets)


def graph_of(model: keras.Model) -> Any:
    """Return what knows the structure of a functional or sequential model's inputs and outputs."""
    return model._functional if isinstance(model, keras.Sequential) else model


def _array(random: np.random.Generator, tensor: Any) -> np.ndarray:
    shape = (3, *(size or usual for size, usual in zip(tensor.shape[1:], (8, 6, 4), strict=False)))
    if tensor.dtype == "string":
        return random.choice(VOCABULARY, shape)
    if "int" in tensor.dtype:
        return random.integers(0, 10, shape).astype(tensor.dtype)
    return random.normal(size=shape).astype("float32" if "16" in tensor.dtype else tensor.dtype)


@dataclass
class Subject:
    """A model to be observed, and at which places: those of the model that it is compared with.

    Attributes:
        places: the layer at each place; None where there is none any more. A place is the layers' names from the model
            inward; within a layer that is no model, a layer's number.
        graphs: the models whose calls can be followed, by place; the model itself at "".
    """

    model: keras.Model
    data: Data
    places: dict[str, Any]
    graphs: dict[str, keras.Model]

    @cached_property
    def inference(self) -> tuple[Any, float]:
        """What the model returns, and the sum of its losses then."""
        returned = self.model(self.data.inputs, training=False)
        return returned, sum((float(loss) for loss in self.model.losses), 0.0)

    @cached_property
    def reloaded(self) -> keras.Model:
        """What is read from the model's file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            self.model.save(path)
            return keras.saving.load_model(path)

    @staticmethod
    def of(model: keras.Model, data: Data, like: "Subject | None" = None) -> "Subject":
        if like is None:
            places = dict(_places(model))
            graphs = {place: layer for place, layer in places.items() if isinstance(layer, keras.Model)}
            return Subject(model, data, places, {"": model, **graphs})
        found = {place: _found(model, place) for place in like.places}
        graphs = {place: found.get(place) for place in like.graphs if isinstance(found.get(place), keras.Model)}
        return Subject(model, data, found, {"": model, **graphs})

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Yield each place, and the layer there."""
        yield from ((place, layer) for place, layer in self.places.items() if layer is not None)


def _places(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    is_model = isinstance(layer, keras.Model)
    inner = layer.layers if is_model else layer._layers
    for number, each in enumerate(inner):
        place = f"{prefix}{each.name if is_model else number}"
        yield place, each
        yield from _places(each, f"{place}/")


def _found(model: Any, place: str) -> Any:
    layer = model
    for part in place.split("/"):
        if isinstance(layer, keras.Model):
            try:
                layer = layer.get_layer(part)
            except ValueError:
                return None
        elif part.isdecimal() and int(part) < len(layer._layers):
            layer = layer._layers[int(part)]
        else:
            return None
    return layer


def differences(
    before: keras.Model, after: keras.Model, is_thorough: bool = False, leave: Sequence[str] = ()
) -> list[str]:
    """Return what of a model's meaning another one does not have, a line each, beginning with its kind.

    Args:
        is_thorough: whether to train, save and clone them too. Both models are as before afterwards.
        leave: kinds that are not looked at.

    Examples:
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, keras.layers.ReLU(name="old")(inputs))
        >>> differences(model, model)
        []
        >>> differences(model, keras.Model(inputs, keras.layers.ReLU(name="new")(inputs)))[0]
        "name: old: gone"
    """
    return compare(Observed(before), after, is_thorough, leave)


class Observed:
    """A model, and what was observed of it, to be compared with several others."""

    def __init__(self, model: keras.Model) -> None:
        if model.compiled:
            model.optimizer.build(model.trainable_variables)
        self.subject = Subject.of(model, Data.of(model))
        self.tolerance = max(TOLERANCES.get(name, 0) for name in _types(self.subject))
        if any(isinstance(layer, layers.BatchNormalization) for _, layer in self.subject.layers()):
            self.tolerance = max(self.tolerance, 1e-6)  # Keras adds a float32 epsilon to a float64 variance
        self._facts: dict[str, Facts] = {}
        self._variables = [(variable, _numpy(variable)) for variable in _variables(model)]
        for kind in OBSERVED:
            self.facts(kind)

    def facts(self, kind: str) -> Facts:
        """Return the facts of a kind, observed when they are first asked for."""
        if kind not in self._facts:
            look = OBSERVED.get(kind)
            # Keras itself cannot save, clone or train some models.
            self._facts[kind] = look(self.subject) if look else _observed(THOROUGH[kind], self.subject)
        return self._facts[kind]

    def changes(self) -> list[str]:
        """Return in what the model itself is not any more what it was, to the last bit of its variables."""
        now = _variables(self.subject.model)
        if [id(variable) for variable, _ in self._variables] != [id(variable) for variable in now]:
            return ["variables: others than before"]
        changed = [v.path for v, value in self._variables if _numpy(v).tobytes() != value.tobytes()]
        return [*(f"variables: {path}: changed" for path in changed), *compare(self, self.subject.model)]


def compare(before: Observed, after: keras.Model, is_thorough: bool = False, leave: Sequence[str] = ()) -> list[str]:
    """Return the differences of a model from what was observed of another; see `differences`."""
    subject = Subject.of(after, before.subject.data, before.subject)
    kinds = {**OBSERVED, **(THOROUGH if is_thorough else {})}
    found: list[str] = []
    for kind, look in kinds.items():
        if kind in leave:
            continue
        new = _observed(look, subject)
        gone = [place for place, layer in subject.places.items() if layer is None or kind in SOFT]
        found += [
            f"{kind}: {line}"
            for line in _unlike(before.facts(kind), new, before.tolerance, gone if kind in PLACED else ())
        ]
    return found


def _observed(look: Callable[[Subject], Facts], subject: Subject) -> Facts:
    try:
        return look(subject)
    except Exception as error:  # a model that has lost something may fail in any way
        text = str(error).strip()
        lines = [line for line in text.splitlines() if line.strip() and "Exception encountered" not in line] or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:160]}"}


def _unlike(old: Facts, new: Facts, tolerance: float, gone: Sequence[str]) -> Iterator[str]:
    if "error" in old:
        return
    if "error" in new:
        yield new["error"]
        return
    for key, value in old.items():
        if key in new:
            said = _unequal(value, new[key], tolerance)
            if said:
                yield f"{key}: {said}"
        elif key.split(" ")[0] not in gone:
            yield f"{key}: gone"


def _unequal(old: Any, new: Any, tolerance: float) -> str:
    """Return in what a value differs; "" where it does not."""
    if not isinstance(old, np.ndarray) or not isinstance(new, np.ndarray):
        return "" if old == new else f"{_short(new)} instead of {_short(old)}"
    if old.dtype != new.dtype or old.shape != new.shape:
        return f"{new.dtype}{list(new.shape)} instead of {old.dtype}{list(old.shape)}"
    if old.dtype.kind not in "fV" and old.dtype.name != "bfloat16":
        return "" if np.array_equal(old, new) else "other values"
    a, b = old.astype("float64"), new.astype("float64")
    is_finite = np.isfinite(a)
    if not np.array_equal(is_finite, np.isfinite(b)):
        return "not finite where it was, or the other way round"
    largest = float(np.abs(a[is_finite]).max(initial=1e-2))
    off = float(np.abs(a - b)[is_finite].max(initial=0)) / largest
    return "" if off <= tolerance else f"off by {off:.1e}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _types(subject: Subject) -> set[str]:
    named = {layer.compute_dtype for _, layer in subject.layers() if isinstance(layer.compute_dtype, str)}
    return named | {x.dtype for x in subject.model.outputs} | {subject.model.compute_dtype}


# What is observed, kind by kind.


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
    return {str(i): _numpy(y) for i, y in enumerate(keras.tree.flatten(struct))}


def _numpy(value: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))  # a copy: PyTorch shares its memory


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
    arrays = keras.tree.flatten(subject.data.inputs) if subject else [_array(random, x) for x in graph.inputs]
    try:
        returned = keras.Model(list(graph.inputs), outputs)(arrays, training=False)
    except ValueError:  # some are of another graph: which?
        if len(outputs) == 1:
            return {}
        facts: Facts = {}
        for place, output in outputs.items():
            facts |= _probed(graph, {place: output}, subject)
        return facts
    return {
        f"{place}{f' {i}' if i else ''}": _numpy(value)
        for place, output in returned.items()
        for i, value in enumerate(keras.tree.flatten(output))
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
        facts["learning rate now"] = _numpy(optimizer.learning_rate)
    return facts


def has_schedule(optimizer: Any) -> bool:
    """Return whether an optimizer's learning rate follows a schedule."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return isinstance(inner._learning_rate, keras.optimizers.schedules.LearningRateSchedule)


def _optimizer(subject: Subject) -> Facts:
    model = subject.model
    return {"steps": int(_numpy(model.optimizer.iterations))} if model.compiled else {}


def _state(subject: Subject) -> Facts:
    """Observe what layers know that is no weight."""
    facts: Facts = {}
    for place, layer in subject.layers():
        weights = {id(weight) for weight in layer.weights}
        own = [v for v in layer.variables if id(v) not in weights and not layer._layers]
        facts |= {f"{place} {v.name}": _numpy(v) for v in own}
        if isinstance(layer, layers.StringLookup | layers.IntegerLookup):
            facts[f"{place} vocabulary"] = list(layer.get_vocabulary())
        if isinstance(layer, layers.Discretization):
            facts[f"{place} boundaries"] = list(layer.bin_boundaries)
        if type(layer) is layers.Normalization:
            facts[f"{place} mean"], facts[f"{place} variance"] = _numpy(layer.mean), _numpy(layer.variance)
        if _is_own(layer) and not isinstance(layer, keras.Model):
            store: dict[str, Any] = {}
            layer.save_own_variables(store)
            facts |= {f"{place} {name}": np.asarray(value) for name, value in store.items()}
    return facts


def _is_own(layer: Any) -> bool:
    return not type(layer).__module__.startswith(("keras", "groupwise"))


def _settings(subject: Subject) -> Facts:
    """Observe the configurations of layers that no rewrite touches."""
    kinds: tuple[type, ...] = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)
    kinds += (layers.BatchNormalization,)
    kinds += (layers.MaxPooling2D, layers.AveragePooling2D, layers.ReLU, layers.Activation, layers.Dense)
    return {
        place: {"class": type(layer).__name__, **{k: v for k, v in layer.get_config().items() if k != "trainable"}}
        for place, layer in subject.layers()
        if not isinstance(layer, (keras.Model, *kinds)) and not layer._layers
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
            facts[f"{place} {variable.name}"] = _numpy(variable)
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
    """Observe the outputs in training, and the moving statistics after it."""
    with _as_before(subject.model):
        keras.utils.set_random_seed(3)  # PyTorch's dropout without a seed
        facts = _by_path(subject.model(subject.data.inputs, training=True))
        for place, layer in subject.layers():
            if isinstance(layer, layers.BatchNormalization):
                facts[f"{place} mean"] = _numpy(layer.moving_mean)
                facts[f"{place} variance"] = _numpy(layer.moving_variance)
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


def _variables(model: keras.Model) -> list[Any]:
    """Return a model's variables, and its optimizer's."""
    return [*model.variables, *(model.optimizer.variables if model.compiled else [])]


@contextlib.contextmanager
def _as_before(model: keras.Model) -> Iterator[None]:
    """Give a model's variables the values back that they have now, the optimizer's and the metrics' too."""
    own = _variables(model)
    values = [_numpy(variable) for variable in own]
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
