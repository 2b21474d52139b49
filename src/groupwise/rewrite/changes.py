"""What a rewrite did, a row for each layer, and what it left as it was and why."""

from dataclasses import dataclass, field

import keras


@dataclass(frozen=True)
class Change:
    """One place that was rewritten: the layer's name there, what it was and what it is; perhaps how far it is off."""

    layer: str
    before: str
    after: str
    note: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Left:
    """One layer that a rewrite could have meant and left as it was, and the reason."""

    layer: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Gone:
    """One layer of the old model whose value no layer of that name gives in the new one, and why.

    Attributes:
        layer: its name, behind those of the models that it is within.
    """

    layer: str
    reason: str


@dataclass
class Report:
    """What a rewrite did; its text is a table.

    Attributes:
        changes: what was rewritten.
        left: what was not.
        gone: the layers whose values cannot be asked for by name any more.
        notes: what else is to be known.
    """

    changes: list[Change] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a note, once; an empty one is none."""
        if text and text not in self.notes:
            self.notes.append(text)

    def __str__(self) -> str:
        rows = [(change.layer, f"{change.before} -> {change.after}", _note(change)) for change in self.changes]
        rows += [(left.layer, f"{left.kind}, left as it is", left.reason) for left in self.left]
        rows += [(gone.layer, "gives its value no more", gone.reason) for gone in self.gone]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"{name:<{widths[0]}}  {what:<{widths[1]}}  {note}".rstrip() for name, what, note in rows]
        return "\n".join([*(lines or ["nothing to rewrite"]), *self.notes])


def _note(change: Change) -> str:
    error = "" if change.error is None else f"relative error {change.error:.2g}"
    return ", ".join(filter(None, (change.note, error)))


def report_of(model: keras.Model) -> Report:
    """Return what the rewrite that made a model did.

    Raises:
        ValueError: no rewrite made it.

    Examples:
        >>> from groupwise import rewrite
        >>> inputs = keras.Input((8, 8, 4))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3, groups=2, name="conv")(inputs))
        >>> print(str(report_of(rewrite.accelerate(model))).splitlines()[0])
        conv  Conv2D, 2 groups -> GroupedConv2D
    """
    report: Report | None = vars(model).get("_groupwise_report")
    if report is None:
        raise ValueError(f"model {model.name!r}: no function of groupwise.rewrite made it, so there is no report")
    return report


def attach(model: keras.Model, report: Report) -> None:
    """Remember the report of the rewrite that made a model; it is not saved with it."""
    object.__setattr__(model, "_groupwise_report", report)
