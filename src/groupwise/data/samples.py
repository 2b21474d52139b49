"""A split's images decoded by many threads, remembered where memory allows, and the broken ones counted."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupwise.data.dataset import Split
from groupwise.data.images import BrokenImage, ImageArray
from groupwise.data.memory import free_memory
from groupwise.errors import UserError
from groupwise.machine import usable_cores

Cache: TypeAlias = bool | Literal["auto"]
Finish: TypeAlias = Callable[[int, ImageArray], ImageArray]
Progress: TypeAlias = Callable[[int, int], None]

BROKEN_SHARE = 0.01
NAMED_IN_MESSAGE = 5
CHUNK = 64  # images a task: a task of one small image costs more to hand over than to decode
MEMORY_SHARE = 0.25


class TooManyBroken(UserError):  # noqa: N818 - says what it found, as UserErrors do
    """More than 1% of a split's images cannot be read, so that training on the rest would mislead."""

    def __init__(self, broken: Sequence[tuple[str, str]], total: int) -> None:
        named = "; ".join(f"{name}: {reason}" for name, reason in broken[:NAMED_IN_MESSAGE])
        more = f"; and {len(broken) - NAMED_IN_MESSAGE} more" if len(broken) > NAMED_IN_MESSAGE else ""
        verb = "is" if len(broken) == 1 else "are"
        super().__init__(f"{len(broken)} of {total} images {verb} broken, which is over 1%: {named}{more}")


class Samples:
    """The images of a split, prepared by a function each, by index.

    Args:
        split: where they come from.
        prepare: what is done to each image once, right after it is decoded.
        smallest_side: the hint that Split.read takes.
        cache: whether prepared images stay in memory; "auto": if they fit into a quarter of what is free.
        workers: threads that decode. None: one a core.

    Attributes:
        seconds_working: processor time that the threads have spent on reading so far.
    """

    def __init__(
        self,
        split: Split,
        prepare: Callable[[ImageArray], ImageArray],
        smallest_side: int | None,
        cache: Cache,
        workers: int | None = None,
    ) -> None:
        self._split = split
        self._prepare = prepare
        self._smallest_side = smallest_side
        self._cache = cache
        self._broken: dict[int, str] = {}
        self._prepared: list[ImageArray | None] | None = None
        self._loaded = False
        self.seconds_working = 0.0
        self._workers = workers or usable_cores()
        self._decoders = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")

    @property
    def broken(self) -> list[tuple[str, str]]:
        """The (name, reason) of every image found broken so far, in the split's order."""
        return [(self._split.names[index], reason) for index, reason in sorted(self._broken.copy().items())]

    def load(self, progress: Progress | None = None) -> NDArray[np.intp]:
        """Fills the cache if there is to be one, and returns the indices to draw from.

        These are the readable images' where the cache knows them, otherwise all.
        """
        if not self._loaded:
            if self._should_cache():
                self._prepared = self.read(range(len(self._split)), progress=progress)
            self._loaded = True
        indices = np.arange(len(self._split))
        return np.setdiff1d(indices, sorted(self._broken)) if self._prepared is not None else indices

    def read(
        self, indices: Sequence[int], finish: Finish | None = None, progress: Progress | None = None
    ) -> list[ImageArray | None]:
        """The prepared images at these indices, None for each broken one.

        Args:
            indices: which images.
            finish: applied, also by many threads, to (position among the indices, prepared image).
            progress: called as images become ready, with how many are and how many there will be.

        Raises:
            TooManyBroken: over 1% of the split is known to be broken by now.
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
        if len(self._broken) > BROKEN_SHARE * len(self._split):
            raise TooManyBroken(self.broken, len(self._split))
        return images

    def close(self) -> None:
        """Ends the threads."""
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

    def _should_cache(self) -> bool:
        if self._cache != "auto":
            return self._cache
        count = len(self._split)
        probe = self.read(sorted({int(index) for index in np.linspace(0, count - 1, min(count, 16))}))
        sizes = [image.nbytes for image in probe if image is not None]
        return bool(sizes) and sum(sizes) / len(sizes) * count <= MEMORY_SHARE * free_memory()
