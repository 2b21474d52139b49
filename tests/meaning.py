"""Whether two models mean the same, beside their numbers.

Each kind of fact is observed by one function of `observing.OBSERVED`. A difference is a line "kind: where: new instead
of old".
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tests.observing import OBSERVED, PLACED, SOFT, THOROUGH, variables_of
from tests.subjects import Data, Facts, Subject, numpy_of

TOLERANCES = {"float64": 1e-5, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Of the largest value, by the coarsest type that a model computes in; Keras's float64 is not exact in all layers."""


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
        if model.compiled and not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self.subject = Subject.of(model, Data.of(model))
        self.tolerance = max(TOLERANCES.get(name, 0) for name in _types(self.subject))
        self._facts: dict[str, Facts] = {}
        self._variables = [(variable, numpy_of(variable)) for variable in variables_of(model)]
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
        now = variables_of(self.subject.model)
        if [id(variable) for variable, _ in self._variables] != [id(variable) for variable in now]:
            return ["variables: others than before"]
        changed = [v.path for v, value in self._variables if numpy_of(v).tobytes() != value.tobytes()]
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
        # Adam moves a bias before a batch norm, whose gradient is rounding alone, by its whole rate this way or that.
        tolerance = before.tolerance * (10 if kind == "step" else 1)
        lines = _unlike(before.facts(kind), new, tolerance, gone if kind in PLACED else ())
        found += [f"{kind}: {line}" for line in lines]
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
    largest = float(np.abs(a[is_finite]).max(initial=0.1))  # a ReLU can leave next to nothing of values around 1
    off = float(np.abs(a - b)[is_finite].max(initial=0)) / largest
    return "" if off <= tolerance else f"off by {off:.1e}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _types(subject: Subject) -> set[str]:
    named = {layer.compute_dtype for _, layer in subject.layers() if isinstance(layer.compute_dtype, str)}
    return named | {x.dtype for x in subject.model.outputs} | {subject.model.compute_dtype}
