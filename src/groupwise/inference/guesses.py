"""What a network takes an image for, as data: its likeliest classes with their names, WordNet ids and probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupwise.inference.evaluation import TOP, most_likely
from groupwise.weights import distinct_names, wordnet_ids

COLUMNS = ("image", "rank", "index", "class", "wordnet_id", "probability")
"""Of a table with a row for each guess."""


@dataclass(frozen=True)
class Classes:
    """The classes of a network, in the order of its outputs.

    Attributes:
        names: as its metadata have them.
        ids: their WordNet ids; None where a class has none.
        labels: names of which no two are alike.

    Examples:
        >>> classes = Classes.of(["cat", "dog"])
        >>> classes.guesses(np.array([0.25, 0.75], np.float32), count=1)
        [{'class': 'dog', 'index': 1, 'wordnet_id': None, 'probability': 0.75}]
    """

    names: tuple[str, ...]
    ids: tuple[str | None, ...]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Classes":
        """Return the classes of these names."""
        return cls(tuple(names), tuple(wordnet_ids(names)), tuple(distinct_names(names)))

    def guesses(self, probabilities: NDArray[np.float32], count: int = TOP) -> list[dict[str, Any]]:
        """Return an image's likeliest classes as data for JSON, the first one first; all of them if they are fewer.

        Args:
            probabilities: (classes,), of one image.
            count: how many.
        """
        return [
            {"class": self.names[place], "index": place, "wordnet_id": self.ids[place], "probability": probability}
            for place, probability in most_likely(probabilities, count)
        ]


def rows(results: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Return a table with a row for each guess, its head first; without WordNet ids where no class has one.

    Args:
        results: of each image its name, "image", and its guesses, "top".

    Examples:
        >>> guess = {"class": "dog", "index": 1, "wordnet_id": None, "probability": 0.75}
        >>> rows([{"image": "a.png", "top": [guess]}])
        [['image', 'rank', 'index', 'class', 'probability'], ['a.png', 1, 1, 'dog', 0.75]]
    """
    flat = [
        {"image": result["image"], "rank": rank, **guess}
        for result in results
        for rank, guess in enumerate(result["top"], start=1)
    ]
    has_ids = any(row["wordnet_id"] is not None for row in flat)
    columns = [name for name in COLUMNS if has_ids or name != "wordnet_id"]
    return [columns, *([row[name] for name in columns] for row in flat)]
