"""What of shards is kept in the user's cache folder: their indices, and those that lie elsewhere.

In `data/` there are an index of each shard, read once, and as many shards as GROUPWISE_DATA_CACHE gigabytes hold (50
where it is not set), of which the ones that were not used for longest go first; images of others are fetched singly.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

from groupwise.data.images import BrokenImage
from groupwise.data.parquet import samples_of_parquet
from groupwise.data.remote import PIECE, file_system, is_remote, piece, retried
from groupwise.data.sharding import write_shard
from groupwise.data.shards import CLASSES, Sample, Shard, samples_of
from groupwise.data.tars import Member, read_member
from groupwise.data.tfrecords import is_tfrecord, samples_of_tfrecord
from groupwise.errors import UserError
from groupwise.machine import cache_folder
from groupwise.writing import replace_file

GIGABYTES = 50.0
CLASS_FILES = (CLASSES, "label.labels.txt")  # ours, and TensorFlow Datasets'


def is_shard(name: str) -> bool:
    """Return whether a file's name, or a pattern of names, is one of shards."""
    return name.endswith(".tar") or _converter_of(name) is not None


def _converter_of(name: str) -> Callable[[Any, str], Iterator[dict[str, bytes]]] | None:
    """Return what makes samples of a file in which no image can be read without others; None for a tar file."""
    if name.endswith(".parquet"):
        return samples_of_parquet
    return samples_of_tfrecord if is_tfrecord(name) else None


class ShardCache:
    """Opens shards, and keeps what should not be read again, where it may write.

    Raises:
        UserError: GROUPWISE_DATA_CACHE is no number.
    """

    def __init__(self) -> None:
        self._folder = cache_folder() / "data"
        text = os.environ.get("GROUPWISE_DATA_CACHE", str(GIGABYTES))
        try:
            self._limit = int(float(text) * 1e9)  # bytes of shards
        except ValueError:
            raise UserError(f"GROUPWISE_DATA_CACHE={text!r}: must be a number of gigabytes") from None
        self._in_use: set[Path] = set()
        self._coming = 0  # bytes that are being fetched
        self._lock = Lock()

    def opened(self, address: str) -> Shard:
        """Return a shard. Raises UserError where it cannot be had or read."""
        return self._remote(address) if is_remote(address) else self._local(Path(address))

    def classes(self, address: str) -> list[str]:
        """Return the names in the file of classes that lies beside a shard; none where there is no such file."""
        texts = (_text_beside(address, name) for name in CLASS_FILES)
        return next((text.splitlines() for text in texts if text is not None), [])

    def _local(self, path: Path) -> Shard:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
        key = _key(str(path.resolve()), status.st_size, status.st_mtime_ns)
        if _converter_of(path.name) is not None:
            return self._converted(key, path.name, status.st_size, lambda: path.open("rb"))
        return Shard(path.name, self._indexed(key, lambda: _index(path, path.name)), _reader(path))

    def _remote(self, address: str) -> Shard:
        system, path = file_system(address)
        name = path.rpartition("/")[2]
        size = int(retried(lambda: system.size(path), address) or 0)
        key = _key(address, size, retried(lambda: system.ukey(path), address))
        if _converter_of(name) is not None:
            return self._converted(key, name, size, lambda: system.open(path, "rb", block_size=PIECE))

        def download(partial: Path) -> None:
            with partial.open("wb") as file:
                for start in range(0, size, PIECE):
                    file.write(piece(system, path, start, min(PIECE, size - start), address))

        kept = self._kept(key, size, download)

        def read(offset: int, length: int, image: str) -> bytes:
            with suppress(BrokenImage):  # another process may have needed the room
                if kept is not None:
                    return _reader(kept)(offset, length, image)
            # What cannot be fetched is no broken image, to go on without: that would be another training.
            return piece(system, path, offset, length, address)

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

    def _converted(self, key: str, name: str, size: int, open_file: Callable[[], Any]) -> Shard:
        """Return a file of another form as a shard."""
        samples_of_file = _converter_of(name)
        assert samples_of_file is not None

        def convert(partial: Path) -> None:
            with open_file() as file:
                write_shard(partial, samples_of_file(file, name))

        kept = self._kept(key, size, lambda partial: retried(lambda: convert(partial), name))
        if kept is None:
            raise UserError(
                f"{name} has no room in {self._folder}, where its images are laid to be read at random: let "
                "GROUPWISE_DATA_CACHE be more gigabytes, or GROUPWISE_CACHE a folder on a larger disk"
            )
        read_kept = _reader(kept)

        def read(offset: int, length: int, image: str) -> bytes:
            if not kept.exists():
                raise UserError(
                    f"{name} is gone from {self._folder}, where another data set needed the room: begin again"
                )
            return read_kept(offset, length, image)

        return Shard(name, self._indexed(key, lambda: _index(kept, name)), read)

    def _kept(self, key: str, size: int, write: Callable[[Path], None]) -> Path | None:
        """Return where a shard is kept, written if it is not there yet; None where there is no room for it."""
        kept = self._folder / f"{key}.shard"
        with self._lock:
            self._in_use.add(kept)
            if kept.exists():
                os.utime(kept)
                return kept
            if not self._has_room(size):
                return None
            self._coming += size
        try:
            replace_file(kept, write)
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
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.access(self._folder, os.W_OK) and shutil.disk_usage(self._folder).free > self._coming + 2 * size
        return False


def _key(*values: object) -> str:
    return blake2b(repr(values).encode(), digest_size=16).hexdigest()


def _text_beside(address: str, name: str) -> str | None:
    """Return what is in a file beside a shard; None where there is no such file."""
    if not is_remote(address):
        path = Path(address).with_name(name)
        return path.read_text(encoding="utf-8") if path.exists() else None
    place = address.rpartition("/")[0] + "/" + name
    system, path_there = file_system(place)
    if not retried(lambda: system.exists(path_there), place):
        return None
    return bytes(retried(lambda: system.cat_file(path_there), place)).decode()


def _index(path: Path, name: str) -> list[Sample]:
    with path.open("rb") as file:
        return samples_of(file, name)


def _reader(path: Path) -> Callable[[int, int, str], bytes]:
    """Return what reads a shard that lies here."""
    return lambda offset, size, name: read_member(path, Member(name, offset, size), name)
