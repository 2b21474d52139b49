"""One pass forward and one backward, and every rule asked: why a network does not learn."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from groupwise.data import Preprocessing
from groupwise.diagnosis import channels, images, kernels, norms, outputs, rates, signals
from groupwise.diagnosis.examined import Examined, Rule
from groupwise.diagnosis.finding import Diagnosis, LayerRow
from groupwise.diagnosis.kernels import start_of
from groupwise.diagnosis.observing import around, gradients, observe, relative, updates, variables_by_part
from groupwise.diagnosis.subject import Subject, batches_of
from groupwise.errors import UserError, lacks_memory
from groupwise.rewrite.drop_ins import DEPTHWISE, SEPARABLE

RULES: tuple[Rule, ...] = (
    *images.RULES,
    *channels.RULES,
    *kernels.RULES,
    *norms.RULES,
    *signals.RULES,
    *outputs.RULES,
    *rates.RULES,
)


def diagnose(
    model: keras.Model,
    batches: Any = None,
    *,
    learning_rate: float | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    class_names: Sequence[str] | None = None,
) -> Diagnosis:
    """Say why a model does not learn, before it is trained or after: faults, each with a number and what to change.

    One pass forward and one backward over a batch; with data, a training of 25 steps for the learning rate as well.
    The model, its weights and how it is compiled stay what they are.

    Args:
        model: any Keras model from images to classes, ours or not; compiled, its loss and optimizer are looked at, too.
        batches: (images, labels), arrays, or what `fit` takes; four batches are looked at. Default: random images.
        learning_rate: that of the training. Default: that of the model's optimizer.
        history: values by epoch of a training that is over, such as `model.fit(...).history`. Default: the model's own.
        class_names: of the data.

    Returns:
        The findings, the weightiest first, and a row for each layer.

    Raises:
        UserError: a ValueError, where batches are no pairs, or the model cannot be run.

    Examples:
        >>> from groupwise.models import create
        >>> print(diagnose(create("mnist_cnn")))
        mnist_cnn: nothing was found that keeps it from learning
    """
    if not isinstance(model, keras.Model):
        raise UserError(f"model={model!r}: must be a Keras model; read a file by keras.saving.load_model")
    given, is_random = batches_of(model, batches)
    objection = images.shape_objection(model, given[0][0])
    if objection is not None:
        return Diagnosis(model.name, (objection,), ())
    _run(model, given[0][0])  # builds what is not built, so that all variables are there
    recorded = history if history is not None else getattr(getattr(model, "history", None), "history", {})
    subject = Subject(
        model,
        given,
        is_random,
        learning_rate,
        _preprocessing(model),
        class_names,
        {name: list(values) for name, values in (recorded or {}).items()},
    )
    examined, notes = _examined(subject)
    found = [finding for rule in RULES for finding in rule(examined)]
    ordered = tuple(sorted(found, key=lambda finding: -finding.weight))
    return Diagnosis(model.name, ordered, tuple(_rows(examined)), tuple(notes))


def _preprocessing(model: keras.Model) -> Preprocessing | None:
    metadata = getattr(model, "metadata", None)
    content = metadata.get("preprocessing") if isinstance(metadata, dict) else None
    return None if content is None else Preprocessing.of(content, model.inputs[0].shape[-1])


def _examined(subject: Subject) -> tuple[Examined, list[str]]:
    """Return what the passes gave, and what they could not."""
    notes = []
    seen = observe(subject)
    made = keras.tree.map_structure(_array, _run(around(subject.model), subject.batches[0][0]))
    if not subject.calls:
        notes.append("it computes in a method of its own: how its layers are connected was not looked at")
    images, labels = subject.batches[0]
    loss, found, moved = outputs.loss_of(subject, made), {}, {}
    batch = images, outputs.labels_for(loss, made) if labels is None else labels
    try:
        found = gradients(subject, loss, batch)
    except Exception as error:  # a loss may demand anything of labels
        notes.append(f"gradients were not looked at: {_reason(error)}")
    try:
        moved = updates(subject, loss, batch) if found and subject.optimizer is not None else {}
    except Exception as error:  # an optimizer may have no configuration
        notes.append(f"the optimizer's steps were not looked at: {_reason(error)}")
    return Examined(subject, seen, made, found, moved, loss), notes


def _run(model: keras.Model, images: Any) -> Any:
    """Return what a model makes of images. Raises UserError where it cannot."""
    try:
        return model(images, training=False)
    except Exception as error:  # a layer may demand anything
        if lacks_memory(error):
            raise
        raise UserError(f"model {model.name!r}: cannot be run on the images: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what an error says, without Keras's line about which layer was called."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception encountered when calling")]
    return (said or lines or [type(error).__name__])[0]


def _array(value: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(value))


def _rows(examined: Examined) -> list[LayerRow]:
    variables = variables_by_part(examined.subject.parts)
    return [
        LayerRow(
            name,
            type(part).__name__,
            seen.mean,
            seen.deviation,
            seen.signal,
            seen.dead,
            seen.saturated,
            _largest(variables.get(name, ()), examined.gradients),
            _largest(variables.get(name, ()), examined.updates),
            *(_fans(part)),
        )
        for name, part in examined.subject.parts.items()
        if (seen := examined.seen.get(name)) is not None
    ]


def _largest(variables: Sequence[Any], sizes: Mapping[int, Any]) -> float | None:
    found = [relative(sizes[id(v)], v) for v in variables if sizes.get(id(v)) is not None]
    return max(found, default=None)


def _fans(part: Any) -> tuple[int | None, int | None]:
    start = start_of(part) if type(part) in (*DEPTHWISE, *SEPARABLE) else None
    return (None, None) if start is None else (start.fan_in, start.assumed)
