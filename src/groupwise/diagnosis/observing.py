"""What each layer computes for some images, and what a step of training would change."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise import backends, keras_private
from groupwise.backends.activations import NAMES
from groupwise.diagnosis.subject import Batch, Subject
from groupwise.running.graph import is_graph

RECTIFIERS = ("relu", "relu6")
_ENDS = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hard_sigmoid": (0.0, 1.0)}
_NEAR = 0.005  # of an activation's range, at its ends


@dataclass(frozen=True, eq=False)
class Seen:
    """What an operation returned for some images, at its first call.

    Attributes:
        mean, deviation: of all numbers. signal: the root of their mean variance over the images.
        dead: the share of channels that are 0 everywhere. constant: the same of those that never change.
        saturated: the share of numbers at an end of a sigmoid or tanh; None of another.
        variances: of each channel, over images and pixels.
        reads: the (least, greatest, deviation) of what it was given; None where that are no numbers.
        finite: whether all numbers are.
        images: how many there were. pixels: of each.
    """

    mean: float
    deviation: float
    signal: float
    dead: float
    saturated: float | None
    variances: NDArray[np.float64]
    reads: tuple[float, float, float] | None
    finite: bool
    images: int
    pixels: int


def observe(subject: Subject, training: bool = True) -> dict[str, Seen]:
    """Return what each part of a model returns for the first batch, by its name.

    Args:
        training: whether batch norm uses the batch's statistics, as in training. The model's values stay what they are.
    """
    found: dict[str, Seen] = {}
    with kept(subject.model), _watched(subject, found):
        around(subject.model)(subject.batches[0][0], training=training)
    return {name: found[name] for name in subject.parts if name in found}


@contextmanager
def _watched(subject: Subject, found: dict[str, Seen]) -> Iterator[None]:
    """Let every part tell what it returns."""
    watched = []
    for name, part in subject.parts.items():
        if "call" in vars(part):
            continue  # somebody else's
        object.__setattr__(part, "call", _telling(name, part, found))
        watched.append(part)
    try:
        yield
    finally:
        for part in watched:
            object.__delattr__(part, "call")


def _telling(name: str, part: Any, found: dict[str, Seen]) -> Any:
    call = part.call

    def told(*arguments: Any, **keywords: Any) -> Any:
        outputs = call(*arguments, **keywords)
        if name not in found:
            read = next(iter(keras.tree.flatten(arguments)), None)
            seen = _seen(part, outputs, read)
            if seen is not None:
                found[name] = seen
        return outputs

    return told


def _seen(part: Any, outputs: Any, read: Any) -> Seen | None:
    numbers = _numbers(next(iter(keras.tree.flatten(outputs)), None))
    if numbers is None or numbers.ndim < 2 or not numbers.size:
        return None
    is_first = numbers.ndim == 4 and getattr(part, "data_format", None) == "channels_first"
    numbers = np.moveaxis(numbers, 1, -1) if is_first else numbers
    channels = numbers.reshape(-1, numbers.shape[-1])
    given = _numbers(read)
    with np.errstate(over="ignore", invalid="ignore"):
        return Seen(
            mean=float(numbers.mean(dtype=np.float64)),
            deviation=float(numbers.std(dtype=np.float64)),
            signal=float(np.sqrt(numbers.var(axis=0, dtype=np.float64).mean())),
            dead=float((~channels.any(axis=0)).mean()),
            saturated=_saturated(part, numbers),
            variances=channels.var(axis=0, dtype=np.float64),
            reads=None
            if given is None
            else (float(given.min()), float(given.max()), float(given.std(dtype=np.float64))),
            finite=bool(np.isfinite(numbers).all()),
            images=len(numbers),
            pixels=int(np.prod(numbers.shape[1:-1])),
        )


def _numbers(value: Any) -> NDArray[np.float32] | None:
    if value is None or not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return None
    if not keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)):
        return None
    try:
        numbers = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))
    except Exception:  # a loop that is traced, as JAX does with a recurrent layer's, has none
        return None
    return numbers if numbers.size else None


def activation_name(part: Any) -> str | None:
    """Return the name of the activation that a layer or operation ends with, or None."""
    if isinstance(part, keras.layers.ReLU):
        return None if part.negative_slope else "relu"
    function = getattr(part, "activation", None)
    if function is None:
        name = type(part).__name__.lower()
        return name if name in (*RECTIFIERS, *_ENDS, "softmax") else None
    return NAMES.get(function) or getattr(function, "__name__", None)


def _saturated(part: Any, numbers: NDArray[np.float32]) -> float | None:
    ends = _ENDS.get(activation_name(part) or "")
    if ends is None:
        return None
    margin = _NEAR * (ends[1] - ends[0])
    return float(((numbers <= ends[0] + margin) | (numbers >= ends[1] - margin)).mean())


def around(model: keras.Model) -> keras.Model:
    """Return a model that computes what another does with its layers, and is compiled by itself."""
    if is_graph(model):
        return keras.Model(*keras_private.structures(keras_private.graph_of(model)), name=model.name)
    return _Around(model)


class _Around(keras.Model):
    """A model that calls another one."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name="around")  # TensorFlow refuses the underscore of the class's name
        self.inner = model

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.inner(inputs, training=training)


@contextmanager
def kept(model: keras.Model) -> Iterator[None]:
    """Give a model's variables back what they are now, and the framework its random numbers."""
    before = [(variable, np.array(keras.ops.convert_to_numpy(variable.value))) for variable in model.variables]
    random = None if backends.active.random_state is None else backends.active.random_state()
    try:
        yield
    finally:
        if random is not None and backends.active.set_random_state is not None:
            backends.active.set_random_state(random)
        for variable, value in before:
            variable.assign(value)
            if getattr(variable.value, "grad", None) is not None:  # PyTorch's
                variable.value.grad = None


class _Recorder(keras.optimizers.Optimizer):
    """Puts each gradient in place of its variable, exactly: on every framework, whatever its size."""

    def __init__(self) -> None:
        super().__init__(learning_rate=1.0)
        object.__setattr__(self, "missing", [])

    missing: list[str]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        variables = trainable_variables or keras_private.built_for(self)  # JAX's trainer names none
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is None:
                self.missing.append(variable.path)
            else:
                variable.assign(gradient)


def gradients(subject: Subject, loss: Any, batch: Batch) -> dict[int, NDArray[np.float32] | None]:
    """Return the gradients of a loss to a model's trainable variables, by the variables' ids; None where none arrives.

    Args:
        loss: as `compile` takes it. batch: images and labels.
    """
    model, recorder = around(subject.model), _Recorder()
    model.compile(recorder, loss, run_eagerly=True, jit_compile=False, auto_scale_loss=False)
    with kept(model):
        _disturb(model.trainable_variables)
        model.train_on_batch(*batch)
        return {
            id(variable): None if variable.path in recorder.missing else _value(variable)
            for variable in model.trainable_variables
        }


def _disturb(variables: Sequence[Any]) -> None:
    """Put small numbers where all are 0: what starts so, as a branch's last batch norm may, has a gradient soon."""
    generator = np.random.default_rng(2)
    for variable in variables:
        if not np.any(_value(variable)):
            variable.assign(0.01 * generator.normal(size=variable.shape))


def _value(variable: Any) -> NDArray[np.float32]:
    return np.array(keras.ops.convert_to_numpy(variable.value), np.float32)


def updates(subject: Subject, loss: Any, batch: Batch) -> dict[int, float]:
    """Return how far the model's own optimizer moves each trainable variable in its first step: norms, by ids."""
    model, optimizer = around(subject.model), fresh(subject.optimizer)
    model.compile(optimizer, loss, run_eagerly=True, jit_compile=False)
    with kept(model):
        before = {id(variable): _value(variable) for variable in model.trainable_variables}
        model.train_on_batch(*batch)
        return {
            id(variable): float(np.linalg.norm(_value(variable) - before[id(variable)]))
            for variable in model.trainable_variables
        }


def fresh(optimizer: Any, rate: float | None = None) -> Any:
    """Return an optimizer like another one that has made no step, with a rate of its own if one is given."""
    config: dict[str, Any] = optimizer.get_config()
    return type(optimizer).from_config(config if rate is None else {**config, "learning_rate": rate})


def relative(gradient: NDArray[np.float32] | float, variable: Any) -> float:
    """Return the norm of a gradient or an update, divided by that of the variable."""
    norm = float(np.linalg.norm(_value(variable)))
    size = gradient if isinstance(gradient, float) else float(np.linalg.norm(gradient.astype(np.float64)))
    return size / norm if norm else 0.0


def variables_by_part(parts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the trainable variables of each part that has some, by its name."""
    found = {name: list(getattr(part, "trainable_variables", ())) for name, part in parts.items()}
    return {name: variables for name, variables in found.items() if variables}
