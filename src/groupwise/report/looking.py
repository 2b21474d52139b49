"""What a network makes of the images of a split, single ones among them, as a page shows it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from groupwise.data import Split
from groupwise.errors import UserError
from groupwise.inference.evaluation import Evaluation
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.report.doubles import Double, find_doubles
from groupwise.report.findings import Calibration, Guesses, calibration_of, guesses_of, suspect_labels
from groupwise.report.pictures import Picture, explained, thumbnails
from groupwise.weights import distinct_names

Found = TypeVar("Found")

MISTAKES, OF_A_PAIR, DOUBTFUL, SUSPECTS, DOUBLES = 12, 2, 8, 12, 8
"""How many images are shown of each kind."""


@dataclass(frozen=True)
class Shown:
    """An image, what it is said to be, and what the network takes it for.

    Attributes:
        name: of the image.
        label, guess: the classes.
        confidence, own: the probabilities of the guess and of the label.
        picture: None where the image is not shown.
    """

    name: str
    label: str
    guess: str
    confidence: float
    own: float
    picture: Picture | None = None


@dataclass(frozen=True)
class Alike:
    """An image to test on and one that was trained on which look alike: names, classes, pictures, bits that differ."""

    names: tuple[str, str]
    labels: tuple[str, str]
    pictures: tuple[Picture | None, Picture | None]
    distance: int


@dataclass(frozen=True, eq=False)
class Look:
    """What a network makes of some images.

    Attributes:
        class_names: of the network.
        evaluation: the counts.
        calibration: how far its confidence can be believed; None where single images were not looked at.
        mistakes, doubtful: the most confident wrong and the least confident right guesses.
        suspects: the images whose label is likely wrong, the first ones with pictures; None where nobody looked.
        doubles: the images that look like ones that were trained on, the first ones with pictures; likewise.
        lacks: why something is not there, by its name: "images", "heat", "suspects", "doubles".
    """

    class_names: Sequence[str]
    evaluation: Evaluation
    calibration: Calibration | None = None
    mistakes: Sequence[Shown] = ()
    doubtful: Sequence[Shown] = ()
    suspects: Sequence[Shown] | None = None
    doubles: Sequence[Alike] | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)


def look(
    network: Network | RewrittenNetwork,
    split: Split,
    evaluation: Evaluation,
    train: Split | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Look:
    """Return what a network makes of a split's images.

    Args:
        network: with class names and preprocessing in its metadata.
        split: the images, which it was not trained on.
        evaluation: of them, and of at least one; with its outputs, unless these were too many to keep.
        train: the images that it was trained on, where doubles are to be looked for.
        progress: of that, as `find_doubles` takes it.
    """
    names, channels = distinct_names(network.metadata["class_names"]), network.architecture["input_shape"][2]
    lacks: dict[str, str] = {}
    doubles = None
    if train is not None:
        found = _or_why(lacks, "doubles", partial(find_doubles, split, train, progress))
        doubles = None if found is None else _alike(found, split, train, names, channels)
    outputs = evaluation.outputs
    if outputs is None:
        lacks["images"] = "There were too many images and classes to keep what the network said of each."
        return Look(names, evaluation, doubles=doubles, lacks=lacks)
    guesses = guesses_of(outputs)
    mistakes, doubtful = guesses.mistakes(MISTAKES, OF_A_PAIR), guesses.doubtful_hits(DOUBTFUL)
    suspects = _or_why(lacks, "suspects", partial(suspect_labels, outputs))
    wanted = dict.fromkeys([*mistakes, *doubtful, *(suspects or [])[:SUSPECTS]])
    pictures, why = explained(network, split, [int(guesses.places[number]) for number in wanted])
    if why:
        lacks["heat"] = why

    def shown(numbers: Iterable[int]) -> list[Shown]:
        return [_shown(guesses, number, split, names, pictures) for number in numbers]

    return Look(
        names,
        evaluation,
        calibration_of(guesses),
        shown(mistakes),
        shown(doubtful),
        None if suspects is None else shown(suspects),
        doubles,
        lacks,
    )


def _or_why(lacks: dict[str, str], name: str, find: Callable[[], list[Found]]) -> list[Found] | None:
    """Return what is found; None, with the reason among what lacks, where a library is not there."""
    try:
        return find()
    except UserError as error:
        lacks[name] = f"{str(error)[:1].upper()}{str(error)[1:]}."
        return None


def _shown(guesses: Guesses, number: int, split: Split, names: Sequence[str], pictures: Mapping[int, Picture]) -> Shown:
    place = int(guesses.places[number])
    return Shown(
        split.names[place],
        names[int(guesses.labels[number])],
        names[int(guesses.guesses[number])],
        float(guesses.confidences[number]),
        float(guesses.own[number]),
        pictures.get(place),
    )


def _alike(doubles: Sequence[Double], split: Split, train: Split, names: Sequence[str], channels: int) -> list[Alike]:
    first = doubles[:DOUBLES]
    tested = thumbnails(split, [double.test for double in first], channels)
    trained = thumbnails(train, [double.train for double in first], channels)
    return [
        Alike(
            (split.names[double.test], train.names[double.train]),
            (names[int(split.labels[double.test])], names[int(train.labels[double.train])]),
            (tested.get(double.test), trained.get(double.train)),
            double.distance,
        )
        for double in doubles
    ]
