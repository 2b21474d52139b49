"""A subject with what its passes gave: what every rule looks at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
from numpy.typing import NDArray

from groupwise.diagnosis.finding import Finding
from groupwise.diagnosis.observing import Seen
from groupwise.diagnosis.subject import Call, Subject


@dataclass(frozen=True, eq=False)
class Examined:
    """What was measured of a subject.

    Attributes:
        seen: what each part returned in training, by its name.
        outputs: the model's outputs in use, an array or a structure of them; None where they could not be computed.
        gradients: of each trainable variable, by its id; None where none arrives. Nothing where no loss was known.
        updates: how far the first step moves each, by its id; nothing without an optimizer.
        loss: by which the gradients were taken.
    """

    subject: Subject
    seen: dict[str, Seen]
    outputs: Any
    gradients: dict[int, NDArray[Any] | None]
    updates: dict[int, float]
    loss: Any

    def calls(self, *kinds: type) -> Iterator[Call]:
        """Yield the calls of layers of some classes, those of subclasses left out."""
        return (call for call in self.subject.calls if type(call.operation) in kinds)

    def layers(self, kind: Any) -> Iterator[tuple[str, Any]]:
        """Yield the layers of a class or of its subclasses, by name."""
        return ((name, part) for name, part in self.subject.parts.items() if isinstance(part, kind))


Rule = Callable[[Examined], Iterator[Finding]]


def is_trainable(layer: Any, variable: keras.Variable) -> bool:
    """Return whether a training changes a variable of a layer."""
    return bool(layer.trainable and variable.trainable)
