"""A split's images decoded by many threads, remembered where memory allows, and the broken ones counted."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Literal, TypeAlias

import numpy as np

from groupwise.data.dataset import Split
from groupwise.data.images import BrokenImage, ImageArray
from groupwise.data.places import Part
from groupwise.errors import UserError
from groupwise.machine import free_memory, usable_cores
from groupwise.texts import first_few

Cache: TypeAlias = bool | Literal["auto"]
Progress: TypeAlias = Callable[[int, int], None]

CHUNK = 64  # images a task: a task of one small image costs more to hand over than to decode
PROBED = 16  # images that tell how large all are
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
    """How images are decoded, and which.

    Attributes:
        cache: whether prepared images stay in memory; "auto": if they fit into a quarter of what is free, which as many
            processes share as there are parts.
        workers: threads that decode. None: one a core.
        part: (index, count): which of how many parts of every batch is wanted, where as many processes share them.
        pieces: in how many steps every batch is given, one slice after the other, where gradients are accumulated.
    """

    cache: Cache = "auto"
    workers: int | None = None
    part: Part = (0, 1)
    pieces: int = 1


class Samples:
    """The images of a split, prepared by a function each, by index.

    Args:
        split: where they come from.
        prepare: what is done to each image once, right after it is decoded.
        smallest_side: the hint that Split.read takes.
        decoding: on how many threads, and what stays in memory.
        needed: the indices of those that will be asked for; None for all, and at least one of each class.

    Attributes:
        seconds_working: processor time that the threads have spent so far.
    """

    def __init__(
        self,
        split: Split,
        prepare: Callable[[ImageArray], ImageArray],
        smallest_side: int | None,
        decoding: Decoding,
        needed: Iterable[int] | None = None,
    ) -> None:
        self._every_class = needed is None
        self._needed = range(len(split)) if needed is None else list(needed)
        self._split = split
        self._prepare = prepare
        self._smallest_side = smallest_side
        self._decoding = decoding
        self._broken: dict[int, str] = {}
        self._prepared: dict[int, ImageArray | None] = {}
        self._loaded = False
        self.seconds_working = 0.0
        self._lock = Lock()
        self._workers = decoding.workers or usable_cores()
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The (name, reason) of every image found broken so far, in the split's order."""
        return [(self._split.names[index], reason) for index, reason in sorted(self._broken.copy().items())]

    @property
    def broken_places(self) -> list[int]:
        """The index of every image found broken so far."""
        return sorted(self._broken.copy())

    def load(self, progress: Progress | None = None) -> None:
        """Fill the cache if there is to be one; a second call does nothing.

        Args:
            progress: called as images become ready, with how many are and how many there will be.
        """
        if not self._loaded:
            if self._should_cache():
                self._prepared = self._read(self._needed, progress)
            self._loaded = True

    def image(self, index: int) -> ImageArray | None:
        """Return the prepared image at an index, None if it is broken; may be called from many threads."""
        if index in self._broken:
            return None
        image = self._prepared.get(index)
        if image is None:
            try:
                image = self._prepare(self._split.read(index, self._smallest_side))
            except BrokenImage as error:
                self._broken[index] = error.reason
        return image

    @property
    def in_memory(self) -> bool:
        """Whether the images that are needed are prepared already."""
        return bool(self._prepared)

    def in_chunks(self, do: Callable[[Sequence[int]], None], items: Sequence[int], least: int = 1) -> None:
        """Give slices of items to a function, by many threads: of even lengths, but perhaps the last one.

        Args:
            do: what is to be done.
            items: a range, or a list.
            least: how many are worth a thread's while; no more than these are done by the caller's own.

        Raises:
            TooManyBroken: more than `most_broken` of the split's images, or all of it or of a class, are known to
                be broken by now.
        """

        def do_chunk(start: int) -> None:
            started = time.thread_time()
            do(items[start : start + size])
            self.spent(time.thread_time() - started)

        size = max(least, min(CHUNK, len(items) // (2 * self._workers)), 1)
        size += size % 2
        if len(items) <= least:
            do(items)
        else:
            deque(self._threads.map(do_chunk, range(0, len(items), size)), maxlen=0)
        self.refuse_too_many()

    def spent(self, seconds: float) -> None:
        """Add processor time, of any thread's."""
        with self._lock:
            self.seconds_working += seconds

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def refuse_too_many(self) -> None:
        """Raise TooManyBroken where that many images are known to be broken by now."""
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
        if self._decoding.cache != "auto":
            return self._decoding.cache
        count = len(self._needed)
        chosen = sorted({int(place) for place in np.linspace(0, count - 1, min(count, PROBED))})
        probe = self._read([self._needed[place] for place in chosen])
        sizes = [image.nbytes for image in probe.values() if image is not None]
        share = MEMORY_SHARE / self._decoding.part[1]
        return bool(sizes) and sum(sizes) / len(sizes) * count <= share * free_memory()

    def _read(self, indices: Sequence[int], progress: Progress | None = None) -> dict[int, ImageArray | None]:
        images: dict[int, ImageArray | None] = {}

        def read(chunk: Sequence[int]) -> None:
            images.update([(index, self.image(index)) for index in chunk])
            if progress is not None:
                with self._lock:
                    progress(len(images), len(indices))

        self.in_chunks(read, indices)
        return images
