"""Data sets in shards: tar files of WebDataset's form, by their headers an index, by which any image is read at random.

A sample is the files whose names are the same up to the first dot of the last part: its image, and its class in a .cls,
.txt or .json file; without such a file its class is the folder that its name begins with.
"""

import json
import re
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import product
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from groupwise.data.classes import loosest_form
from groupwise.data.dataset import Dataset, SplitRule
from groupwise.data.files import IMAGE_SUFFIXES, ImageFiles, is_hidden, parts_of
from groupwise.data.folders import dataset_of_entries
from groupwise.data.layout import Entry, Folders, role_of
from groupwise.errors import UserError

CLASSES = "classes.txt"
"""The file beside shards that names the classes by number, one a line."""
LABEL_FILES = ("cls", "txt", "json")  # the first that there is tells the class
LABEL_NAMES = ("label_name", "class_name", "label", "class", "cls")  # in a .json
LARGEST_LABEL = 1 << 20  # bytes
BRACES = re.compile(r"\{([^{}]*)\}")


class Sample(NamedTuple):
    """An image in a shard.

    Attributes:
        name: its file's, in the shard.
        offset, size: of its bytes in the shard.
        label: its class, or the number of it.
    """

    name: str
    offset: int
    size: int
    label: str


class Shard(NamedTuple):
    """A shard that can be read at random.

    Attributes:
        name: of the file, for messages; also its split's, perhaps.
        samples: what is in it.
        read: (offset, size, the image's name) to bytes; from many threads. It raises BrokenImage, and UserError where
            the whole shard cannot be had any more.
    """

    name: str
    samples: Sequence[Sample]
    read: Callable[[int, int, str], bytes]


def expand_braces(text: str) -> list[str]:
    """Return the names that a text with braces stands for, as a shell does it; itself where there are none.

    Examples:
        >>> expand_braces("{train,val}-{008..010}.tar")[:4]
        ['train-008.tar', 'train-009.tar', 'train-010.tar', 'val-008.tar']
    """
    parts = BRACES.split(text)
    choices = [[part] if place % 2 == 0 else _in_braces(part) for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def _in_braces(text: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if numbers is None:
        return text.split(",")
    first, last = numbers.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def samples_of(file: IO[bytes], name: str, streams: bool = False) -> list[Sample]:
    """Return the images in a tar file, in their order.

    Args:
        file: of it.
        name: of it, for messages.
        streams: whether to read it once from its beginning to its end, where seeking costs more.

    Raises:
        UserError: it is no tar file, or a sample has no class.
    """
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r|" if streams else "r:") as archive:
            for member in archive:
                if not member.isfile() or is_hidden(member.name):
                    continue
                key, _, ending = _parted(member.name)
                if "." + ending in IMAGE_SUFFIXES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif ending in LABEL_FILES and member.size <= LARGEST_LABEL:
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    labels.setdefault(key, {})[ending] = content.read()
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{name}: not a readable tar file without compression ({error})") from error
    return [Sample(*image, _label(key, labels.get(key, {}), name)) for key, image in images.items()]


def _parted(name: str) -> tuple[str, str, str]:
    """Return a name up to the first dot of its last part, the dot, and what follows, in small letters."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return folder + slash + stem, dot, ending.lower()


def _label(key: str, files: dict[str, bytes], shard: str) -> str:
    for ending in LABEL_FILES:
        if ending not in files:
            continue
        text = files[ending].decode(errors="replace").strip()
        if ending != "json":
            return text
        with suppress(ValueError):
            content = json.loads(text)
            found = (content[name] for name in LABEL_NAMES if isinstance(content, dict) and name in content)
            label = next(found, content if isinstance(content, int | str) else None)
            if label is not None:
                return str(label)
    folder = key.removeprefix("./").partition("/")
    if folder[1]:
        return folder[0]
    raise UserError(f"{shard}: the sample {key} has no class: no .cls, .txt or .json beside its image tells it")


def dataset_of_shards(name: str, shards: Sequence[Shard], classes: Sequence[str], rule: SplitRule) -> Dataset:
    """Return the data set that shards hold.

    Args:
        name: the data set's.
        shards: of which those belong to a split that have its name.
        classes: their names by number; without them a number is a name.
        rule: divides the images where there is no split to test on.

    Raises:
        UserError: there are no images, one class, or splits of other classes.
    """
    by_role: Folders = {}
    found: dict[str, tuple[Shard, Sample]] = {}
    name_of = _namer(shards, classes, name)
    for shard in shards:
        said = role_of(PurePosixPath(shard.name).stem)
        role = "train" if said is None else "test" if said[0] == "evaluation" else said[0]
        entries = by_role.setdefault(role, [])
        for sample in shard.samples:
            file = f"{shard.name}/{sample.name}"
            found[file] = shard, sample
            entries.append(_entry(name_of(sample.label), sample.name, file))
    if "train" not in by_role:
        by_role = {"train": [entry for entries in by_role.values() for entry in entries]}

    def read(file: str) -> bytes:
        shard, sample = found[file]
        return shard.read(sample.offset, sample.size, file)

    files = ImageFiles(list(found), read, lambda file: found[file][1].size, [], [])
    return dataset_of_entries(name, by_role, files, rule)


def _namer(shards: Sequence[Shard], classes: Sequence[str], name: str) -> Callable[[str], str]:
    """Return what makes a class's name of a label."""
    labels = {sample.label for shard in shards for sample in shard.samples}
    if not all(label.isdecimal() for label in labels):
        return str
    if classes and labels:
        largest = max(map(int, labels))
        if largest >= len(classes):
            raise UserError(f"{name}: the file beside it names {len(classes)} classes, an image is of class {largest}")
        return lambda label: classes[int(label)]
    width = max(map(len, labels), default=0)
    return lambda label: label.zfill(width)


_form = lru_cache(maxsize=4096)(loosest_form)  # of folders, which are few


def _entry(label: str, name: str, file: str) -> Entry:
    """Return an image's class, its place below its class's folder, and its file: the same as in a folder."""
    parts = parts_of(name)
    is_below = len(parts) > 1 and (parts[0] == label or _form(parts[0]) == _form(label))
    return (label, *parts[is_below:]), file
