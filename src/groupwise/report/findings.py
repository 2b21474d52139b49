"""What a network's outputs say of single images, of pairs of classes, and of its own certainty."""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from groupwise.errors import check_installed
from groupwise.inference.evaluation import Outputs, probabilities

BINS = 15
"""Of the reliability diagram, as in Guo et al. 2017, section 4."""


@dataclass(frozen=True, eq=False)
class Guesses:
    """The likeliest class of each image, by the images' numbers.

    Attributes:
        labels: int64, (n,): the classes that they are said to be of.
        guesses: int64, (n,): the classes that the network takes them for.
        confidences: float32, (n,): the probability of the guess.
        own: float32, (n,): the probability of the label.
        places: int64, (n,): where the images stand in their split.
    """

    labels: NDArray[np.int64]
    guesses: NDArray[np.int64]
    confidences: NDArray[np.float32]
    own: NDArray[np.float32]
    places: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which guesses are the label, (n,)."""
        return self.guesses == self.labels

    def mistakes(self, count: int, of_a_pair: int) -> list[int]:
        """Return the numbers of the wrong guesses that were the most confident, no more than some of a pair of classes.

        Args:
            count: how many at most.
            of_a_pair: how many at most of one class that is taken for one other.
        """
        wrong = np.flatnonzero(~self.right)
        chosen: list[int] = []
        seen: dict[tuple[int, int], int] = {}
        for number in wrong[np.argsort(-self.confidences[wrong], kind="stable")].tolist():
            pair = int(self.labels[number]), int(self.guesses[number])
            seen[pair] = seen.get(pair, 0) + 1
            if seen[pair] <= of_a_pair:
                chosen.append(number)
            if len(chosen) == count:
                break
        return chosen

    def doubtful_hits(self, count: int) -> list[int]:
        """Return the numbers of the right guesses that were the least confident."""
        right = np.flatnonzero(self.right)
        return [int(number) for number in right[np.argsort(self.confidences[right], kind="stable")][:count]]


def guesses_of(outputs: Outputs) -> Guesses:
    """Return the guesses that outputs stand for.

    Examples:
        >>> logits = np.log(np.array([[0.9, 0.1], [0.4, 0.6]], np.float32))
        >>> found = guesses_of(Outputs(logits, np.array([1, 1]), np.array([0, 1])))
        >>> found.guesses.tolist(), found.right.tolist(), found.own.round(1).tolist()
        ([0, 1], [False, True], [0.10000000149011612, 0.6000000238418579])
    """
    shares = probabilities(outputs.logits)
    each = np.arange(len(shares))
    guesses = shares.argmax(axis=1)
    return Guesses(outputs.labels, guesses, shares[each, guesses], shares[each, outputs.labels], outputs.places)


class Bin(NamedTuple):
    """The images whose guesses have a confidence in (low, high]: how many, the share of right ones, the mean one."""

    low: float
    high: float
    images: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Calibration:
    """How far a network's confidence can be believed.

    Attributes:
        bins: those that hold images.
        error: the expected calibration error, the mean over images of how far their bin's accuracy is from its mean
            confidence (Guo et al. 2017, arXiv 1706.04599, equation 3).
        confidence: the mean of all.
        accuracy: of all.
    """

    bins: tuple[Bin, ...]
    error: float
    confidence: float
    accuracy: float


def calibration_of(guesses: Guesses, bins: int = BINS) -> Calibration:
    """Return how well the confidence of at least one guess agrees with its accuracy, in bins of equal width."""
    confidences, right = guesses.confidences.astype(np.float64), guesses.right
    indices = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for index in np.unique(indices).tolist():
        inside = indices == index
        count = int(inside.sum())
        means = float(right[inside].mean()), float(confidences[inside].mean())
        found.append(Bin(index / bins, (index + 1) / bins, count, *means))
    error = sum(one.images * abs(one.accuracy - one.confidence) for one in found) / len(right)
    return Calibration(tuple(found), error, float(confidences.mean()), float(right.mean()))


class Pair(NamedTuple):
    """A class that is taken for another one: of how many of its images, and what share."""

    label: int
    guess: int
    images: int
    share: float


def confused_pairs(confusion: NDArray[np.int64], most: int) -> list[Pair]:
    """Return the pairs of classes that are confused most often, those of the larger share first where it is as often.

    Args:
        confusion: (classes, classes), images of the row's class that were taken for the column's.
        most: how many at most.
    """
    totals = confusion.sum(axis=1)
    rows, columns = np.nonzero(confusion * (1 - np.eye(len(confusion), dtype=np.int64)))
    pairs = (
        Pair(row, column, int(confusion[row, column]), float(confusion[row, column] / totals[row]))
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    )
    return sorted(pairs, key=lambda pair: (-pair.images, -pair.share, pair.label, pair.guess))[:most]


def suspect_labels(outputs: Outputs) -> list[int]:
    """Return the numbers of the images whose label is likely wrong, the likeliest first.

    These are the images off the diagonal of the confident joint (Northcutt et al. 2021, arXiv 1911.00068, section 3.1):
    another class than the label's has at least the probability that it has on average in images of its own. They are
    ordered by how much likelier that class is than the label. The network must not have been trained on them.

    Raises:
        UserError: cleanlab is not installed.
    """
    check_installed("cleanlab", "finding likely wrong labels", "report")
    if len(np.unique(outputs.labels)) < 2:  # there is no other class whose images could tell
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with few images or none, and of bars that a notebook lacks
        from cleanlab.filter import find_label_issues

        found = find_label_issues(
            outputs.labels,
            probabilities(outputs.logits),
            filter_by="confident_learning",
            return_indices_ranked_by="normalized_margin",
            n_jobs=1,
        )
    return [int(number) for number in found]
