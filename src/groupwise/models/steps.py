"""A model's steps without Python between their operations, where the backend has a way to run them so."""

from functools import partial
from typing import Any

import keras

from groupwise import backends, keras_private

KINDS = ("train", "test", "predict")
"""Keras's steps: `train_step`, which `make_train_function` makes `train_function` of, and so on."""


def run_recorded(model: keras.Model, folds: bool = True) -> None:
    """Let `fit`, `evaluate`, `predict` and their fellows run what was recorded of their first steps.

    On PyTorch; TensorFlow and JAX trace a step themselves, and `predict_on_batch` alone is another there. A step that
    cannot be recorded runs as Keras runs it, and one warning says why.

    Args:
        model: any.
        folds: whether evaluation and prediction fold batch norms, which rounds otherwise.
    """
    if backends.active.step is not None:
        for kind in KINDS:
            make = partial(_make, model, kind, folds=folds and kind != "train")
            object.__setattr__(model, f"make_{kind}_function", make)
    is_ours_to_change = keras_private.is_of_keras(type(model).predict_on_batch) and not _own_code(model, "predict")
    if backends.active.prediction is not None and is_ours_to_change:
        object.__setattr__(model, "predict_on_batch", backends.active.prediction(model))


def objections(model: keras.Model) -> dict[str, str]:
    """Return why a model that `run_recorded` was given runs steps of a kind as Keras does; empty where it does not."""
    if backends.active.step is None:
        return {}
    made = {kind: _own_code(model, kind) or _seen(model, kind) for kind in KINDS}
    return {kind: objection for kind, objection in made.items() if objection}


def _make(model: Any, kind: str, force: bool = False, *, folds: bool) -> None:
    """Do what Keras's method of this name does, and record what it made."""
    name, step = f"{kind}_function", backends.active.step
    getattr(type(model), f"make_{name}")(model, force)
    function = getattr(model, name)
    if step is not None and not isinstance(function, step) and not _own_code(model, kind):
        setattr(model, name, step(model, kind, function, folds))


def _own_code(model: Any, kind: str) -> str:
    """Return why a class's own way to make a step is left alone, or ""."""
    names = f"{kind}_step", f"make_{kind}_function"
    own = [name for name in names if not keras_private.is_of_keras(getattr(type(model), name))]
    if own or names[0] in vars(model):
        return f"its {own[0] if own else names[0]} is its own"
    return "run_eagerly=True asks for Keras's Python" if model.run_eagerly else ""


def _seen(model: Any, kind: str) -> str:
    return getattr(getattr(model, f"{kind}_function"), "objection", "")
