"""Writing a data set as shards that WebDataset reads, and `load_dataset`: tar files, and the classes' names."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from groupwise.data.dataset import Dataset, Split
from groupwise.data.files import suffix_of
from groupwise.data.images import BrokenImage
from groupwise.data.samples import Progress
from groupwise.data.shards import CLASSES
from groupwise.errors import UserError
from groupwise.writing import make_folder, replace_file, write_text

BLOCK = 512  # bytes that a tar file's header, and what fills up its last block, take


def write_shards(
    dataset: Dataset, folder: Path, megabytes: float = 256, progress: Progress | None = None
) -> list[Path]:
    """Write a data set's images as shards, in random order; files stay as they are, to the byte.

    Splits that the data set has become train-000000.tar, test-000000.tar and so on; a data set without test images
    images-000000.tar. Images are known by the same marks as before, so that a run can go on with the shards.

    Args:
        dataset: what is to be written.
        folder: where to; it is made.
        megabytes: of a shard, about.
        progress: called as images are written, with how many are and how many there will be.

    Returns:
        The paths of the shards.

    Raises:
        UserError: they cannot be written, or the folder holds shards.

    Examples:
        >>> from groupwise.data import load_dataset
        >>> write_shards(load_dataset("digits"), Path("shards"))  # doctest: +SKIP
        [PosixPath('shards/images-000000.tar')]
    """
    if any(folder.glob("*.tar")):
        raise UserError(f"{folder} holds shards: name another folder")
    make_folder(folder)
    sides = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    splits = {"images": dataset.undivided} if dataset.undivided is not None else sides
    total = sum(len(split) for split in splits.values() if split is not None)
    written: list[Path] = []
    done = 0
    write_text(folder / CLASSES, "".join(f"{name}\n" for name in dataset.class_names))
    for name, split in splits.items():
        samples = iter(()) if split is None else _samples(split, dataset.class_names)
        waiting = next(samples, None)
        number = 0
        while waiting is not None:
            path = folder / f"{name}-{number:06}.tar"
            shard = _Shard(samples, waiting, int(megabytes * 1e6))
            replace_file(path, shard.write)
            waiting, number, done = shard.waiting, number + 1, done + shard.count
            written.append(path)
            if progress is not None:
                progress(done, total)
    return written


class _Shard:
    """Writes samples to one file until it is full; `waiting` is the one that comes next, `count` how many it has."""

    def __init__(self, samples: Iterator[dict[str, bytes]], waiting: dict[str, bytes], size: int) -> None:
        self._samples, self._size = samples, size
        self.waiting: dict[str, bytes] | None = waiting
        self.count = 0

    def write(self, path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            size = 0
            while self.waiting is not None and (not size or size < self._size):
                size += _add(archive, self.waiting)
                self.count += 1
                self.waiting = next(self._samples, None)


def write_shard(path: Path, samples: Iterable[dict[str, bytes]]) -> None:
    """Write samples, their files by name, to one tar file."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for sample in samples:
            _add(archive, sample)


def _add(archive: tarfile.TarFile, sample: Mapping[str, bytes]) -> int:
    """Add a sample's files, and return how many bytes they take, about."""
    for name, content in sample.items():
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return sum(len(content) + 2 * BLOCK for content in sample.values())


def _samples(split: Split, class_names: tuple[str, ...]) -> Iterator[dict[str, bytes]]:
    """Yield the files of each sample, in random order; what is broken is left out."""
    keys: set[str] = set()
    for index in np.random.default_rng(0).permutation(len(split)).tolist():
        label = int(split.labels[index])
        with suppress(BrokenImage):
            content, suffix = _content(split, index)
            key = _key(split, index, class_names[label], keys.__contains__)
            keys.add(key)
            yield {f"{key}{suffix}": content, f"{key}.cls": str(label).encode()}


def _content(split: Split, index: int) -> tuple[bytes, str]:
    """Return an image's file, and its name's ending: what is no file becomes a PNG."""
    if split.file is not None:
        return split.file(index), suffix_of(split.names[index])
    pixels = split.read(index)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue(), ".png"


def _key(split: Split, index: int, class_name: str, is_taken: Callable[[str], bool]) -> str:
    """Return a sample's name without endings, in which there is no dot: the class, and its place in that folder."""
    if split.file is None:
        return f"{class_name}/{index:08}"
    _, *folders, last = split.marked(index).decode(errors="surrogatepass").split("\0")
    stem = last.removesuffix(suffix_of(last)).replace(".", "_")
    key = "/".join([class_name, *folders, stem])
    return key if not is_taken(key) else f"{key}~{index}"
