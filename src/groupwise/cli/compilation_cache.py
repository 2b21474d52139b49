"""What JAX compiled, kept for the next process: its persistent compilation cache, in the user's cache folder.

`GROUPWISE_COMPILATION_CACHE=0` turns it off, `GROUPWISE_CACHE` names another folder; JAX's own variables go first.
"""

import os
import zlib
from contextlib import suppress
from pathlib import Path

from groupwise.machine import cache_folder, processor, processor_flags

MOST = 512 * 2**20
"""Bytes that the folder may hold; a ResNeXt-50's training and prediction take one million."""

# A ResNeXt-50's first steps compile 76 functions, 74 of them in less than a second each, JAX's own threshold: half of
# XLA's 13 s on two busy cores. Where all are kept, 1 s is left.
SHORTEST = ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def folder() -> Path:
    """Return where what was compiled for this processor lies: another one may lack its instructions."""
    instructions = " ".join([processor(), *sorted(processor_flags())])
    return cache_folder() / f"jax-{zlib.crc32(instructions.encode()):08x}"


def keep_compiled() -> None:
    """Tell JAX, before it starts, where to keep what it compiles.

    Processes may share the folder: an entry that another one is writing, or has removed, is compiled again.
    """
    if os.environ.get("GROUPWISE_COMPILATION_CACHE", "1") == "0" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    place = folder()
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is written here will be run
        _make_room(place)
    except OSError:  # the work is none the worse for it
        return
    if os.access(place, os.W_OK):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place)
        os.environ.setdefault(*SHORTEST)


def _make_room(place: Path) -> None:
    """Remove the oldest entries where there are more than MOST bytes, until half of them are free."""
    entries = []
    for path in place.glob("*-cache"):
        with suppress(OSError):  # another process removes some, too
            entries.append((path.stat().st_mtime, path.stat().st_size, path))
    size = sum(length for _, length, _ in entries)
    if size <= MOST:
        return
    for _, length, path in sorted(entries):
        if size <= MOST // 2:
            break
        path.unlink(missing_ok=True)
        size -= length
