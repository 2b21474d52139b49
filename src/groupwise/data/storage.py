"""Where shards lie, here or at an address that fsspec knows, and what of them is kept: their indices, and the shards.

The user's cache folder keeps in `data/` an index of each shard, read once, and of those that lie elsewhere as many as
GROUPWISE_DATA_CACHE gigabytes hold (50 where it is not set); images of the others are fetched one at a time.
"""

import glob
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from groupwise.data.dataset import Dataset, SplitRule
from groupwise.data.images import BrokenImage
from groupwise.data.shards import CLASSES, Sample, Shard, dataset_of_shards, expand_braces, samples_of
from groupwise.errors import UserError, check_installed, first_line
from groupwise.machine import cache_folder
from groupwise.texts import quoted
from groupwise.writing import expanded, replace_file

Result = TypeVar("Result")

SUFFIXES = (".tar",)
GIGABYTES = 50.0
AT_ONCE = 8  # shards that are opened at once
TRIES, PAUSE = 5, 0.5  # of what is fetched; seconds after the first failure, twice as long after each other
PIECE = 1 << 24  # bytes that are asked for at a time


def is_pattern(source: str) -> bool:
    """Return whether a source is an address, or a pattern of shards' names, and no path."""
    has_pattern = glob.has_magic(source) or "{" in source
    return "://" in source or (has_pattern and source.endswith(SUFFIXES) and not expanded(source).exists())


def shards_in(folder: Path) -> list[str]:
    """Return the shards of a folder that holds them and no folders beside."""
    found = sorted(str(entry) for entry in folder.iterdir() if entry.name.endswith(SUFFIXES))
    return found if found and not any(entry.is_dir() for entry in folder.iterdir()) else []


def dataset_of_sources(source: str, addresses: Sequence[str], rule: SplitRule) -> Dataset:
    """Return the data set in shards.

    Args:
        source: what the user named.
        addresses: of the shards, of which none may have braces or other patterns any more.
        rule: divides the images where no shard's name says that it is of a test.

    Raises:
        UserError: a shard cannot be had or read.
    """
    keeper = Keeper(cache_folder() / "data", _limit())
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shards") as threads:
        shards = list(threads.map(keeper.opened, addresses))
        classes = keeper.classes(addresses[0])
    return dataset_of_shards(_name(source), shards, classes, rule)


def addresses_of(source: str) -> list[str]:
    """Return the addresses that a source with braces, or with * and ?, stands for; of a folder its shards.

    Raises:
        UserError: there are none.
    """
    found = [address for text in expand_braces(source) for address in _matching(text)]
    if not found:
        raise UserError(f"{source} names no shards: no {' or '.join(SUFFIXES)} file is there")
    return found


def _matching(text: str) -> list[str]:
    if "://" not in text:
        paths = glob.glob(str(expanded(text))) if glob.has_magic(text) else [str(expanded(text))]  # noqa: PTH207
        return sorted(paths)
    if text.endswith(SUFFIXES) and not glob.has_magic(text):
        return [text]
    system, path = _file_system(text)
    found = retried(lambda: system.glob(path) if glob.has_magic(text) else system.find(path), text)
    return [system.unstrip_protocol(entry) for entry in sorted(found) if entry.endswith(SUFFIXES)]


def _name(source: str) -> str:
    """Return what a data set is called: the last part of its source that is no pattern."""
    parts = [re.split(r"[\[{*?]", part)[0].rstrip("-_.") for part in source.split("/")]
    return next(part for part in reversed(parts) if part)


def _limit() -> int:
    text = os.environ.get("GROUPWISE_DATA_CACHE", str(GIGABYTES))
    try:
        return int(float(text) * 1e9)
    except ValueError:
        raise UserError(f"GROUPWISE_DATA_CACHE={text!r}: must be a number of gigabytes") from None


def _file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it."""
    check_installed("fsspec", quoted(address), "shards")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be read: {first_line(error)}") from error
    return system, str(path)


def retried(fetch: Callable[[], Result], address: str) -> Result:
    """Return what a function fetches; where it fails it is called again, after pauses.

    Raises:
        UserError: it fails each time, or what it is to fetch is not there or not to be read.
    """
    for number in range(TRIES):
        try:
            return fetch()
        except UserError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            reason = "is not there" if isinstance(error, FileNotFoundError) else "may not be read"
            raise UserError(f"{address} {reason}") from error
        except Exception as error:  # of HTTP and cloud libraries, whichever is behind the address
            if number == TRIES - 1:
                raise UserError(f"{address} cannot be fetched, {TRIES} times: {first_line(error)}") from error
            time.sleep(PAUSE * 2**number)
    raise AssertionError("the last try returns or raises")


def _piece(system: Any, path: str, start: int, size: int, address: str) -> bytes:
    """Return so many bytes of a file from a place on."""

    def fetch() -> bytes:
        content = bytes(system.cat_file(path, start=start, end=start + size))
        if len(content) != size:
            raise OSError(f"{len(content)} bytes came where {size} were asked for")
        return content

    return retried(fetch, address)


class Keeper:
    """Opens shards, and keeps what should not be read again.

    Args:
        folder: where it is kept; where nothing can be written there, nothing is.
        limit: bytes of shards that are kept at most; the ones that were not used for longest go first.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._in_use: set[Path] = set()
        self._coming = 0  # bytes that are being fetched
        self._lock = Lock()

    def opened(self, address: str) -> Shard:
        """Return a shard. Raises UserError where it cannot be had or read."""
        return self._remote(address) if "://" in address else self._local(Path(address))

    def classes(self, address: str) -> list[str]:
        """Return the names in the file of classes that lies beside a shard; none where there is no such file."""
        place = address.rpartition("/")[0] + "/" + CLASSES
        if "://" not in address:
            path = Path(address).with_name(CLASSES)
            return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        system, path_there = _file_system(place)
        if not retried(lambda: system.exists(path_there), place):
            return []
        return bytes(retried(lambda: system.cat_file(path_there), place)).decode().splitlines()

    def _local(self, path: Path) -> Shard:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
        key = _key(str(path.resolve()), status.st_size, status.st_mtime_ns)
        return Shard(path.name, self._indexed(key, lambda: _index(path, path.name)), _reader(path))

    def _remote(self, address: str) -> Shard:
        system, path = _file_system(address)
        name = path.rpartition("/")[2]
        size = int(retried(lambda: system.size(path), address) or 0)
        key = _key(address, size, retried(lambda: system.ukey(path), address))
        kept = self._fetched(key, system, path, address, size)

        def read(offset: int, length: int, image: str) -> bytes:
            with suppress(BrokenImage):  # another process may have needed the room
                if kept is not None:
                    return _reader(kept)(offset, length, image)
            try:
                return _piece(system, path, offset, length, address)
            except UserError as error:
                raise BrokenImage(image, str(error)) from error

        def index() -> list[Sample]:
            if kept is not None:
                return _index(kept, name)
            with system.open(path, "rb", block_size=PIECE) as file:
                return samples_of(file, name, streams=True)

        return Shard(name, self._indexed(key, lambda: retried(index, address)), read)

    def _indexed(self, key: str, index: Callable[[], list[Sample]]) -> list[Sample]:
        path = self._folder / f"{key}.json"
        with suppress(OSError, ValueError, TypeError):
            return [Sample(*sample) for sample in json.loads(path.read_text(encoding="utf-8"))]
        samples = index()
        with suppress(OSError, UserError):  # it is read again the next time
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, lambda partial: partial.write_text(json.dumps(samples), encoding="utf-8"))
        return samples

    def _fetched(self, key: str, system: Any, path: str, address: str, size: int) -> Path | None:
        """Return where a copy of a shard lies; None where there is no room for one."""
        kept = self._folder / f"{key}.shard"
        with self._lock:
            self._in_use.add(kept)
            if kept.exists():
                os.utime(kept)
                return kept
            if not self._has_room(size):
                return None
            self._coming += size

        def download(partial: Path) -> None:
            with partial.open("wb") as file:
                for start in range(0, size, PIECE):
                    file.write(_piece(system, path, start, min(PIECE, size - start), address))

        try:
            with suppress(OSError):  # said by what follows
                self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(kept, download)
        finally:
            with self._lock:
                self._coming -= size
        return kept

    def _has_room(self, size: int) -> bool:
        """Return whether so many bytes more can be kept, and remove what was not used for longest if it has to be."""
        entries = []
        for path in self._folder.glob("*.shard"):
            with suppress(OSError):  # another process removes some, too
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
        needed = size + self._coming + sum(length for _, length, _ in entries) - self._limit
        removable = [entry for entry in sorted(entries) if entry[2] not in self._in_use]
        if needed > sum(length for _, length, _ in removable):
            return False
        for _, length, path in removable:
            if needed <= 0:
                break
            path.unlink(missing_ok=True)
            needed -= length
        parent = next(folder for folder in (self._folder, *self._folder.parents) if folder.exists())
        return shutil.disk_usage(parent).free > self._coming + 2 * size


def _key(*values: object) -> str:
    return blake2b(repr(values).encode(), digest_size=16).hexdigest()


def _index(path: Path, name: str) -> list[Sample]:
    with path.open("rb") as file:
        return samples_of(file, name)


def _reader(path: Path) -> Callable[[int, int, str], bytes]:
    """Return what reads a shard that lies here."""

    def read(offset: int, size: int, name: str) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise BrokenImage(name, (error.strerror or "cannot be read").lower()) from error
        if len(content) < size:
            raise BrokenImage(name, "truncated")
        return content

    return read
