"""Data sets that are arrays: handwritten digits, .npz files, MNIST's idx files."""

import gzip
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupwise.data.dataset import Dataset, Split, SplitRule, dataset_of_splits
from groupwise.data.images import ImageArray
from groupwise.errors import UserError

Pair: TypeAlias = tuple[NDArray[Any], NDArray[Any]]

# The names that the arrays of an .npz file go by: Keras's, MedMNIST's; and without a split.
SPLIT_KEYS = (
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test"), "validation": ("x_val", "y_val")},
    {
        "train": ("train_images", "train_labels"),
        "test": ("test_images", "test_labels"),
        "validation": ("val_images", "val_labels"),
    },
    {"train": ("x", "y")},
    {"train": ("images", "labels")},
)
IDX_MAGIC_UINT8 = 0x08


def digits(rule: SplitRule) -> Dataset:
    """1,797 handwritten digits: grey, 8x8, their 17 levels spread over 0..255.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (its test part), UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49, licensed CC BY 4.0; the same images in the same order as scikit-learn's.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        levels, labels = file["images"], file["labels"]
    images = np.rint(levels * (255 / 16)).astype(np.uint8)
    class_names = [str(digit) for digit in range(10)]
    return dataset_of_arrays("digits", {"train": (images, labels)}, rule, class_names)


def dataset_of_npz(path: Path, rule: SplitRule) -> Dataset:
    """Return the data set in an .npz file with x_train, y_train, x_test, y_test, or x, y, or images, labels."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            for keys in SPLIT_KEYS:
                if names.issuperset(keys["train"]):
                    break
            else:
                raise UserError(
                    f"{path} holds {', '.join(sorted(names)) or 'nothing'}: "
                    "x_train, y_train (and x_test, y_test), or x, y, or images, labels are needed"
                )
            pairs = {role: (file[pair[0]], file[pair[1]]) for role, pair in keys.items() if names.issuperset(pair)}
    except UserError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable .npz file of plain arrays ({error})") from error
    return dataset_of_arrays(path.name, pairs, rule)


def find_idx_files(folder: Path) -> dict[str, Path]:
    """Return MNIST's files in a folder: "train-images", "train-labels", "t10k-images", "t10k-labels" to a path."""
    found = {}
    for path in sorted(folder.iterdir()):
        for part in (
            "train-images",
            "train-labels",
            "t10k-images",
            "t10k-labels",
            "test-images",
            "test-labels",
        ):
            if part in path.name and "idx" in path.name:
                found[part.replace("test", "t10k")] = path
    return found if {"train-images", "train-labels"} <= found.keys() else {}


def dataset_of_idx(folder: Path, files: dict[str, Path], rule: SplitRule) -> Dataset:
    """Return the data set in MNIST's files, as find_idx_files found them."""
    pairs = {"train": (read_idx(files["train-images"]), read_idx(files["train-labels"]))}
    if {"t10k-images", "t10k-labels"} <= files.keys():
        pairs["test"] = (read_idx(files["t10k-images"]), read_idx(files["t10k-labels"]))
    return dataset_of_arrays(folder.name, pairs, rule)


def read_idx(path: Path) -> ImageArray:
    """Read an idx file of bytes, gzipped or not: a magic number, the dimensions, the values.

    Source: http://yann.lecun.com/exdb/mnist (the file format).
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        zeros, kind, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
        if zeros or kind != IDX_MAGIC_UINT8:
            raise ValueError("its first bytes are not those of an idx file of bytes")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: not a readable idx file ({error})") from error


def dataset_of_arrays(name: str, pairs: dict[str, Pair], rule: SplitRule, class_names: Sequence[str] = ()) -> Dataset:
    """Return the data set that arrays make.

    Args:
        name: the data set's name.
        pairs: "train", and perhaps "test" and "validation", to images and labels. Images are (n, height,
            width), with channels last or first; uint8, other integers in 0..255, or floats in 0..1. Labels
            are integers or strings, (n,) or (n, 1), or one-hot (n, classes).
        rule: divides the images where there is no test. An image is known by its pixels alone, so that it stays on its
            side when others are added before it, and copies of it come with it.
        class_names: the classes' names; default: the labels that occur, sorted.

    Raises:
        UserError: the arrays are nothing of this kind, are empty, or have one class.
    """
    images = {role: _to_images(f"{name}: {role}", pair[0]) for role, pair in pairs.items()}
    labels = {role: _to_labels(f"{name}: {role}", pair[1]) for role, pair in pairs.items()}
    for role, array in images.items():
        if len(array) != len(labels[role]):
            raise UserError(f"{name}: {role} has {len(array)} images but {len(labels[role])} labels")
        if array.shape[1:] != images["train"].shape[1:]:
            raise UserError(f"{name}: the images of train and {role} differ in shape")
    if not len(labels["train"]):
        raise UserError(f"{name} is empty: it holds no images")
    values = np.unique(labels["train"]) if not class_names else np.arange(len(class_names))
    if len(values) < 2:
        raise UserError(f"{name} has one class only, {str(values[0])!r}: two are needed to tell apart")
    for role, array in labels.items():
        unknown = np.setdiff1d(array, values)
        if unknown.size:
            raise UserError(f"{name}: {role} has the label {str(unknown[0])!r}, which train lacks")
    splits = {
        role: _split(role, array, np.searchsorted(values, labels[role]).astype(np.int64))
        for role, array in images.items()
    }
    _, height, width, channels = images["train"].shape
    names = tuple(class_names) or tuple(str(value) for value in values)
    return dataset_of_splits(name, names, splits, (height, width), 1 if channels == 1 else 3, rule)


def _split(role: str, images: ImageArray, labels: NDArray[np.int64]) -> Split:
    names = [f"{role}[{index}]" for index in range(len(labels))]
    return Split(labels, names, lambda index, smallest_side: images[index], lambda index: images[index].tobytes())


def _to_images(name: str, images: NDArray[Any]) -> ImageArray:
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"{name}: images of shape {images.shape} are not (n, height, width, 1 or 3)")
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if images.dtype.kind not in "iufb":
        raise UserError(f"{name}: images of type {images.dtype} are not numbers")
    low, high = (images.min(), images.max()) if images.size else (0, 0)
    limit = 1 if images.dtype.kind in "fb" and high <= 1 else 255
    if not 0 <= low <= high <= limit:  # also where there is a NaN
        raise UserError(f"{name}: pixels go from {low} to {high}, and neither 0..1 nor 0..255 holds them")
    return np.rint(images * (255.0 / limit)).astype(np.uint8)


def _to_labels(name: str, labels: NDArray[Any]) -> NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] > 1 and np.all(np.sort(labels, axis=1)[:, :-1] == 0):
        labels = labels.argmax(axis=1)  # one-hot
    elif labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or (labels.dtype.kind not in "iuUS" and np.any(labels != np.rint(labels))):
        raise UserError(f"{name}: labels of shape {labels.shape} and type {labels.dtype} are not one class each")
    if labels.dtype.kind == "S":
        return np.char.decode(labels, "utf-8", "backslashreplace")
    return labels if labels.dtype.kind == "U" else labels.astype(np.int64)
