"""Images to test on that look like ones that were trained on, by a perceptual hash of each."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupwise.data import BrokenImage, Split
from groupwise.errors import check_installed
from groupwise.machine import usable_cores

NEAREST = 4
"""Bits of 64 by which two hashes may differ."""

BITS, SMALLEST_SIDE, ROWS, CHUNK = 64, 32, 1024, 256


class Double(NamedTuple):
    """An image to test on, by its place, the most alike one that was trained on, and the bits that set them apart."""

    test: int
    train: int
    distance: int


def find_doubles(test: Split, train: Split, progress: Callable[[int, int], object] | None = None) -> list[Double]:
    """Return the images to test on that look like ones that were trained on, the most alike first.

    Each image's hash says which of its 8x8 lowest frequencies lie above their median (the perceptual hash of
    `imagehash`); a copy that was scaled, compressed anew or made a little brighter differs in few bits. Flat images are
    left out: all of their frequencies are alike.

    Args:
        test, train: the images.
        progress: called now and then with how many images have been read, and how many there are.

    Raises:
        UserError: imagehash is not installed.
    """
    check_installed("imagehash", "looking for doubles", "report")
    total = len(test) + len(train)
    done = 0

    def counted(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    ours, others = (_signs(split, counted) for split in (test, train))
    found = []
    known = np.flatnonzero(others.any(axis=1))
    if not len(known):
        return []
    for start in range(0, len(ours), ROWS):
        rows = ours[start : start + ROWS]
        # Of signs the product is how many agree less how many differ; of what has no hash it is 0.
        agreement = rows @ others[known].T
        nearest = agreement.argmax(axis=1)
        distances = (BITS - agreement[np.arange(len(rows)), nearest]) / 2
        for row in np.flatnonzero(distances <= NEAREST).tolist():
            found.append(Double(start + row, int(known[nearest[row]]), int(distances[row])))
    return sorted(found, key=lambda double: (double.distance, double.test))


def _signs(split: Split, counted: Callable[[int], None]) -> NDArray[np.float32]:
    """Return the bits of every image's hash as 1 and -1, (n, 64); zeros where it is broken or flat."""
    signs = np.zeros((len(split), BITS), np.float32)

    def hash_chunk(start: int) -> int:
        chunk = range(start, min(start + CHUNK, len(split)))
        for index in chunk:
            _hash_into(signs[index], split, index)
        return len(chunk)

    with ThreadPoolExecutor(usable_cores()) as threads:
        for count in threads.map(hash_chunk, range(0, len(split), CHUNK)):
            counted(count)
    return signs


def _hash_into(row: NDArray[np.float32], split: Split, index: int) -> None:
    import imagehash

    try:
        pixels = split.read(index, SMALLEST_SIDE)
    except BrokenImage:
        return
    if np.ptp(pixels):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        row[:] = np.where(imagehash.phash(picture).hash.reshape(-1), 1, -1)
