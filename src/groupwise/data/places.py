"""Which images a batch has: the order of each epoch, the steps in which a batch is given, and each process's part."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Part = tuple[int, int]


class Order:
    """Which image stands at each place of an epoch.

    Args:
        count: images.
        seed: of the random order that each epoch has; None for the images' own order.
    """

    def __init__(self, count: int, seed: int | None) -> None:
        self._count, self._seed = count, seed
        # Batches are made ahead, into the next epoch: two orders are in use.
        self._of_epoch = lru_cache(maxsize=2)(self._draw)

    def image_at(self, epoch: int, place: int) -> int:
        """Return the index of the image."""
        return int(self._of_epoch(epoch)[place])

    def _draw(self, epoch: int) -> NDArray[np.integer]:
        indices = np.arange(self._count, dtype=np.min_scalar_type(self._count))
        return indices if self._seed is None else np.random.default_rng((self._seed, epoch)).permutation(indices)


@dataclass(frozen=True)
class Division:
    """How the places of an epoch make batches, and batches parts.

    A part is a slice: the parts of a batch, one after the other, are the batch. Those of a batch that they do not
    divide differ by one in size, and may be empty.

    Attributes:
        count: places of an epoch.
        batch_size: places of a batch, its parts together.
        equal: whether all batches have the same size, and all parts: what does not fill a last batch is left out, and
            where there are too few for one, all are one batch. Otherwise the last one is smaller.
        part: (index, count): which of how many parts of every batch is meant.
        pieces: the steps in which a batch is given, one slice after the other; each has all parts.

    Raises:
        ValueError: a value is out of its range, or parts and pieces cannot be equal.

    Examples:
        >>> division = Division(10, 4, equal=True, part=(1, 2))
        >>> division.steps, division.batch(1), division.part_of(1)
        (2, range(4, 8), range(6, 8))
    """

    count: int
    batch_size: int
    equal: bool
    part: Part = (0, 1)
    pieces: int = 1

    def __post_init__(self) -> None:
        index, parts = self.part
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: a batch has at least one image")
        if not 0 <= index < parts:
            raise ValueError(f"part={self.part}: must be (index, count), the index from 0 to count - 1")
        slices = parts * self.pieces
        if not self.equal or not self._size % slices:
            return
        if self.count < slices:
            raise ValueError(f"part={self.part}: {self.count} images are too few for {slices} parts of a batch")
        fitting = max(self._size - self._size % slices, slices)
        batch = f"the {self.count} images, one batch," if self._size < self.batch_size else "a batch"
        raise ValueError(
            f"batch_size={self.batch_size}: {batch} cannot be divided into {slices} equal parts; take a multiple of "
            f"{slices}, such as {fitting}"
        )

    @property
    def _size(self) -> int:
        return min(self.batch_size, self.count)

    @property
    def steps(self) -> int:
        """Steps of an epoch: as many as its batches have pieces."""
        batches = self.count // self._size if self.equal else math.ceil(self.count / self.batch_size)
        return batches * self.pieces

    def images_in(self, steps: int) -> int:
        """Return how many places an epoch's first steps have, all parts together."""
        return min(steps * self._size // self.pieces, self.count)

    def batch(self, step: int) -> range:
        """Return the places of the whole batch that a step belongs to."""
        start = step // self.pieces * self.batch_size
        return range(start, min(start + self.batch_size, self.count))

    def part_of(self, step: int) -> range:
        """Return the places of this part of a step's piece."""
        return _slice(_slice(self.batch(step), step % self.pieces, self.pieces), *self.part)

    def places(self) -> Iterator[int]:
        """Return the places of this part of all steps."""
        return chain.from_iterable(map(self.part_of, range(self.steps)))


def _slice(places: range, index: int, count: int) -> range:
    """Return one of several slices of about the same size."""
    return places[len(places) * index // count : len(places) * (index + 1) // count]
