"""A split's images decoded by many threads, remembered where memory allows, and the broken ones counted."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from groupwise.data.dataset import Split
from groupwise.data.images import BrokenImage, ImageArray
from groupwise.errors import UserError
from groupwise.machine import free_memory, usable_cores
from groupwise.texts import first_few

Cache: TypeAlias = bool | Literal["auto"]
Finish: TypeAlias = Callable[[int, ImageArray], ImageArray]
Progress: TypeAlias = Callable[[int, int], None]

CHUNK = 64  # images a task: a task of one small image costs more to hand over than to decode
MEMORY_SHARE = 0.25


class TooManyBroken(UserError):  # noqa: N818 - says what it found, as UserErrors do
    """So many of a split's images cannot be read that to go on with the rest would mislead.

    Args:
        broken: the (name, reason) of each.
        finding: what is wrong with their number.
    """

    def __init__(self, broken: Sequence[tuple[str, str]], finding: str) -> None:
        named = first_few((f"{name}: {reason}" for name, reason in broken), between="; ")
        super().__init__(f"{finding}: {named}; repair these files or take them away")


def most_broken(total: int) -> int:
    """Return how many of a split's images may be broken: 10, or 1% where that is more, up to a quarter; one always.

    Examples:
        >>> [most_broken(total) for total in (8, 32, 100, 1000, 5000)]
        [2, 8, 10, 10, 50]
    """
    return max(1, min(10, total // 4), total // 100)


@dataclass(frozen=True)
class Decoding:
    """How images are decoded.

    Attributes:
        cache: whether prepared images stay in memory; "auto": if they fit into a quarter of what is free.
        workers: threads that decode. None: one a core.
    """

    cache: Cache = "auto"
    workers: int | None = None


class Samples:
    """The images of a split, prepared by a function each, by index.

    Args:
        split: where they come from.
        prepare: what is done to each image once, right after it is decoded.
        smallest_side: the hint that Split.read takes.
        decoding: on how many threads, and what stays in memory.
        every_class: whether each class needs a readable image.

    Attributes:
        seconds_working: processor time that the threads have spent on reading so far.
    """

    def __init__(
        self,
        split: Split,
        prepare: Callable[[ImageArray], ImageArray],
        smallest_side: int | None,
        decoding: Decoding,
        every_class: bool = False,
    ) -> None:
        self._every_class = every_class
        self._split = split
        self._prepare = prepare
        self._smallest_side = smallest_side
        self._cache = decoding.cache
        self._broken: dict[int, str] = {}
        self._prepared: list[ImageArray | None] | None = None
        self._loaded = False
        self.seconds_working = 0.0
        self._workers = decoding.workers or usable_cores()
        self._decoders = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The (name, reason) of every image found broken so far, in the split's order."""
        return [(self._split.names[index], reason) for index, reason in sorted(self._broken.copy().items())]

    @property
    def broken_places(self) -> list[int]:
        """The index of every image found broken so far."""
        return sorted(self._broken.copy())

    def load(self, progress: Progress | None = None) -> None:
        """Fill the cache if there is to be one; a second call does nothing."""
        if not self._loaded:
            if self._should_cache():
                self._prepared = self.read(range(len(self._split)), progress=progress)
            self._loaded = True

    def read(
        self, indices: Sequence[int], finish: Finish | None = None, progress: Progress | None = None
    ) -> list[ImageArray | None]:
        """Return the prepared images at these indices, None for each broken one.

        Args:
            indices: which images.
            finish: applied, also by many threads, to (position among the indices, prepared image).
            progress: called as images become ready, with how many are and how many there will be.

        Raises:
            TooManyBroken: more than `most_broken` of the split's images, or all of it or of a class, are known to
                be broken by now.
        """
        prepared = self._prepared
        if prepared is not None and finish is None:
            return [prepared[index] for index in indices]

        def read_chunk(start: int) -> tuple[list[ImageArray | None], float]:
            started = time.thread_time()
            positions = range(start, min(start + chunk, len(indices)))
            part = [self._read_one(indices[position], position, finish) for position in positions]
            return part, time.thread_time() - started

        chunk = max(1, min(CHUNK, len(indices) // (2 * self._workers)))
        images: list[ImageArray | None] = []
        for part, seconds in self._decoders.map(read_chunk, range(0, len(indices), chunk)):
            images += part
            self.seconds_working += seconds
            if progress is not None:
                progress(len(images), len(indices))
        self._refuse_too_many()
        return images

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _read_one(self, index: int, position: int, finish: Finish | None) -> ImageArray | None:
        if index in self._broken:
            return None
        image = self._prepared[index] if self._prepared is not None else None
        if image is None:
            try:
                image = self._prepare(self._split.read(index, self._smallest_side))
            except BrokenImage as error:
                self._broken[index] = error.reason
                return None
        return image if finish is None else finish(position, image)

    def _refuse_too_many(self) -> None:
        total, broken = len(self._split), np.array(sorted(self._broken.copy()), np.intp)
        if not broken.size:
            return
        if len(broken) == total:
            raise TooManyBroken(self.broken, "every image is broken" if total > 1 else "the only image is broken")
        if len(broken) > most_broken(total):
            finding = f"{len(broken)} of {total} images are broken, more than the {most_broken(total)} that are skipped"
            raise TooManyBroken(self.broken, finding)
        if not self._every_class:
            return
        labels = self._split.labels
        sizes = np.bincount(labels)
        gone = np.flatnonzero((np.bincount(labels[broken], minlength=len(sizes)) == sizes) & (sizes > 0))
        if gone.size:
            named = [(self._split.names[i], self._broken[i]) for i in broken.tolist() if labels[i] == gone[0]]
            raise TooManyBroken(named, "every image of one class is broken")

    def _should_cache(self) -> bool:
        if self._cache != "auto":
            return self._cache
        count = len(self._split)
        probe = self.read(sorted({int(index) for index in np.linspace(0, count - 1, min(count, 16))}))
        sizes = [image.nbytes for image in probe if image is not None]
        return bool(sizes) and sum(sizes) / len(sizes) * count <= MEMORY_SHARE * free_memory()
