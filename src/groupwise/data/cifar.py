"""CIFAR-10 and CIFAR-100 as published: folders, or tar.gz files, of pickled batches (Krizhevsky 2009)."""

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from groupwise.data.arrays import Pair, dataset_of_arrays
from groupwise.data.dataset import Dataset, SplitRule
from groupwise.data.files import refuse_climbing
from groupwise.errors import UserError

# For each data set: the files of the two splits, the file and key of the names, the key of the labels.
LAYOUTS = (
    (
        [f"data_batch_{number}" for number in range(1, 6)],
        ["test_batch"],
        "batches.meta",
        "label_names",
        "labels",
    ),
    (["train"], ["test"], "meta", "fine_label_names", "fine_labels"),
)
SHAPE = (-1, 3, 32, 32)
LARGEST_FILE = 1 << 29
FEW = 20  # a published archive has no more members

# What a pickled array of numbers is made of, by the names that NumPy 1 and 2 give it; arrays themselves tell
# the two functions, whose modules are private.
REBUILDERS = {"_reconstruct": np.empty(1).__reduce__()[0], "_frombuffer": np.empty(1).__reduce_ex__(5)[0]}
ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.{module}", name): REBUILDERS[name]
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    },
}


def is_cifar_folder(folder: Path) -> bool:
    """Return whether the files of a published CIFAR lie in this folder."""
    return any((folder / layout[2]).is_file() and (folder / layout[0][0]).is_file() for layout in LAYOUTS)


def is_cifar_archive(path: Path) -> bool:
    """Return whether one of the first files of a tar file is one of a published CIFAR's."""
    try:
        with tarfile.open(path) as archive:
            names = [PurePosixPath(member.name).name for member in islice(archive, FEW)]
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return False
    return any(layout[2] in names or layout[0][0] in names for layout in LAYOUTS)


def dataset_of_cifar_folder(folder: Path) -> Dataset:
    """CIFAR from its folder, such as cifar-10-batches-py."""
    names = [path.name for path in folder.iterdir()]
    return _dataset(folder, names, lambda name: (folder / name).read_bytes())


def dataset_of_cifar_archive(path: Path) -> Dataset:
    """CIFAR from its archive, such as cifar-10-python.tar.gz, which is read in place and never unpacked."""
    wanted = {name for layout in LAYOUTS for name in (*layout[0], *layout[1], layout[2])}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                refuse_climbing(member.name, path)
                name = PurePosixPath(member.name).name
                if member.isfile() and name in wanted and member.size <= LARGEST_FILE:
                    file = archive.extractfile(member)
                    assert file is not None  # it is a file
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable tar file ({error})") from error
    return _dataset(path, contents, contents.__getitem__)


def _dataset(path: Path, names: Iterable[str], read: Callable[[str], bytes]) -> Dataset:
    present = set(names)
    layout = next((it for it in LAYOUTS if present.issuperset([*it[0], *it[1], it[2]])), None)
    if layout is None:
        raise UserError(f"{path} does not hold all the files of CIFAR-10 or CIFAR-100 (their Python versions)")
    train, test, meta, names_key, labels_key = layout

    def pair(files: list[str]) -> Pair:
        batches = [_load(path, file, read(file)) for file in files]
        images = np.concatenate([np.asarray(batch["data"], np.uint8).reshape(SHAPE) for batch in batches])
        labels = np.concatenate([np.asarray(batch[labels_key], np.int64) for batch in batches])
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels

    try:
        class_names = [str(name) for name in _load(path, meta, read(meta))[names_key]]
        pairs = {"train": pair(train), "test": pair(test)}
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: its files are not CIFAR's ({type(error).__name__}: {error})") from error
    return dataset_of_arrays(path.name, pairs, SplitRule(), class_names)


def _load(path: Path, file: str, content: bytes) -> dict[str, Any]:
    try:
        loaded = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path}: {file} is not a readable pickle of plain arrays ({error})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: {file} holds no dictionary")
    return loaded


class _PlainUnpickler(pickle.Unpickler):
    """Reads arrays, text, numbers, lists and dictionaries; whatever else a pickle would call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how bytes are written for Python 2
            return _encode_latin1
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain data")
        return ADMITTED[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")
