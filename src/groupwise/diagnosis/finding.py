"""What a diagnosis says: findings, each with the number that it rests on, in the order of their weight."""

from dataclasses import dataclass, field
from enum import IntEnum
from html import escape

from groupwise.texts import html_table

NAMED = 3  # layers that a sentence names; of more it says how many


class Weight(IntEnum):
    """How much a finding matters: it stops the learning, it slows it or costs accuracy, or it is worth a look."""

    LOOK = 1
    COSTS = 2
    STOPS = 3


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: of the kind of fault, for programs: "depthwise fan-in".
        weight: how much it matters.
        what: what is wrong, with the number, as the beginning of a sentence.
        where: the layers, by their names within the model ("block/conv"); none: the model, or its data, as a whole.
        why: why that is a fault, as the end of the sentence.
        cure: what to change in code.
        value: the number that it rests on.
    """

    name: str
    weight: Weight
    what: str
    why: str
    cure: str
    value: float
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return two sentences: what, where and why; and what to change."""
        return f"{self.sentence}. {self.cure}"

    @property
    def sentence(self) -> str:
        """What is wrong, where and why."""
        return f"{self.what}{self._places()}: {self.why}"

    def _places(self) -> str:
        if not self.where:
            return ""
        named = ", ".join(self.where[:NAMED])
        others = len(self.where) - NAMED
        return f" at {named}" + (f" and {others} more" if others > 0 else "")


def two_digits(number: float) -> str:
    """Return a positive number with its first two digits, large ones without an exponent.

    Examples:
        >>> two_digits(1072.3), two_digits(4.12), two_digits(0.000512)
        ('1,100', '4.1', '0.00051')
    """
    short = f"{number:.2g}"
    return f"{float(short):,.0f}" if 10 <= number < 1e9 else short


@dataclass(frozen=True)
class LayerRow:
    """What a layer computed for the images, and what its weights were told to change.

    Attributes:
        name: within the model. kind: its class.
        mean, deviation: of all numbers that it returned.
        signal: how much they differ between images: the root of the mean variance over the images.
        dead: the share of its channels that are 0 at every pixel of every image.
        saturated: the share of its numbers at an end of a sigmoid or tanh; None of other layers.
        gradient: the norm of its weights' gradients, divided by that of the weights; None where it has none to train.
        update: the same of what the optimizer would add to the weights; None without an optimizer, too.
        fan_in, assumed_fan_in: how many numbers an output sums over, and how many its initialiser took; None where no
            initialiser counts them.
    """

    name: str
    kind: str
    mean: float
    deviation: float
    signal: float
    dead: float
    saturated: float | None = None
    gradient: float | None = None
    update: float | None = None
    fan_in: int | None = None
    assumed_fan_in: int | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All findings on a model, the weightiest first, and what they rest on.

    Attributes:
        model: its name.
        findings: of the same weight in the order of the model.
        rows: one a call of a layer.
        notes: what could not be looked at, and why.
    """

    model: str
    findings: tuple[Finding, ...]
    rows: tuple[LayerRow, ...] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the findings, numbered, a line each."""
        if not self.findings:
            return f"{self.model}: nothing was found that keeps it from learning"
        return "\n".join(f"{place}. {finding}" for place, finding in enumerate(self.findings, start=1))

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        if not self.findings:
            return f"<p>{escape(str(self))}</p>"
        rows = [(each.name, each.sentence, each.cure) for each in self.findings]
        return html_table(("finding", "what, where and why", "what to change"), rows, texts=3)
