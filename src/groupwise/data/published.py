"""Data sets in the layouts that they are published in: ImageNet, Food-101, Oxford's flowers, SVHN."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np

from groupwise.data.arrays import dataset_of_arrays
from groupwise.data.dataset import Dataset, SplitRule
from groupwise.data.files import ImageFiles, files_in_folder, parts_of
from groupwise.data.folders import dataset_of_entries
from groupwise.data.layout import Entry, Folders
from groupwise.data.listed import files_below
from groupwise.data.matlab import read_mat
from groupwise.data.tars import files_in_tar
from groupwise.errors import UserError

Loader: TypeAlias = Callable[[Path, SplitRule], Dataset]

TRAIN_TAR, VALIDATION_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
KAGGLE_IMAGES, KAGGLE_TRUTH = "ILSVRC/Data/CLS-LOC", "LOC_val_solution.csv"
TRUTH, CLASSES = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
DEVELOPMENT_KIT = (".", "data", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12")  # where these two may lie
VALIDATION_IMAGES = "ILSVRC2012_val_*.JPEG"
FLOWER_SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}


def find_published(folder: Path) -> Loader | None:
    """Return what loads a folder in one of these layouts, by the files that lie in it; None where it is in no such."""
    return next((load for is_it, load in LAYOUTS if is_it(folder)), None)


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda folder: all((folder / name).exists() for name in names)


def _food(folder: Path, rule: SplitRule) -> Dataset:
    """Food-101 (Bossard et al. 2014): images/, and lists of class/number in meta/."""
    by_role = {role: _listed(folder / "meta" / f"{role}.txt") for role in ("train", "test")}
    return dataset_of_entries(folder.name, by_role, files_below(folder), rule)


def _listed(path: Path) -> list[Entry]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [(PurePosixPath(f"{line}.jpg").parts, f"images/{line}.jpg") for line in lines if line]


def _flowers(folder: Path, rule: SplitRule) -> Dataset:
    """Oxford's 102 flowers (Nilsback and Zisserman 2008): jpg/, and each image's class and split by its number."""
    try:
        labels = read_mat(folder / "imagelabels.mat")["labels"].ravel().tolist()
        splits = read_mat(folder / "setid.mat")
        numbers = {role: splits[name].ravel().tolist() for role, name in FLOWER_SPLITS.items()}
        names = {number: f"image_{number:05}.jpg" for chosen in numbers.values() for number in chosen}
        by_role: Folders = {
            role: [((f"{labels[number - 1]:03}", names[number]), f"jpg/{names[number]}") for number in chosen]
            for role, chosen in numbers.items()
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{folder}: its .mat files are not those of the 102 flowers ({error})") from error
    return dataset_of_entries(folder.name, by_role, files_below(folder), rule)


def _street_numbers(folder: Path, rule: SplitRule) -> Dataset:
    """SVHN's cropped digits (Netzer et al. 2011): X, (32, 32, 3, n), and y, in which 0 is 10."""
    pairs = {}
    for role in ("train", "test"):
        path = folder / f"{role}_32x32.mat"
        content = read_mat(path)
        if not {"X", "y"} <= content.keys() or content["X"].ndim != 4:
            raise UserError(f"{path}: its arrays are not SVHN's, X and y")
        pairs[role] = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2)), content["y"].ravel().astype(int) % 10
    return dataset_of_arrays(folder.name, pairs, rule, [str(digit) for digit in range(10)])


def _is_imagenet(folder: Path) -> bool:
    """Return whether a folder has ImageNet's training images, and validation images that no class folders hold."""
    if (folder / TRAIN_TAR).exists() or (folder / KAGGLE_IMAGES).exists():
        return True
    validation = folder / "val"
    is_flat = (folder / VALIDATION_TAR).exists() or (validation.is_dir() and any(validation.glob(VALIDATION_IMAGES)))
    return is_flat and (folder / "train").is_dir()


def _imagenet(folder: Path, rule: SplitRule) -> Dataset:
    """ImageNet (Russakovsky et al. 2015): class folders or a tar of tars by WordNet id, validation images by number."""
    images = folder / KAGGLE_IMAGES if (folder / KAGGLE_IMAGES).exists() else folder
    classes = _validation_classes(folder)
    tar = folder / TRAIN_TAR
    train = files_in_tar(tar, nested=True) if tar.exists() else files_in_folder(images / "train")
    tar = folder / VALIDATION_TAR
    validation = files_in_tar(tar) if tar.exists() else files_in_folder(images / "val")
    by_role: Folders = {
        "train": [(parts_of(file), f"train/{file}") for file in train.names if "/" in file],
        "validation": [
            ((classes[place.stem], place.name), f"val/{place}")
            for place in map(PurePosixPath, validation.names)
            if place.stem in classes
        ],
    }
    if not by_role["validation"]:
        raise UserError(f"{folder}: none of its validation images is among those whose classes are known")
    return dataset_of_entries(folder.name, by_role, _side_by_side({"train": train, "val": validation}), rule)


def _validation_classes(folder: Path) -> dict[str, str]:
    """Return the WordNet id of each validation image, by its name without ending."""
    if (folder / KAGGLE_TRUTH).exists():
        with (folder / KAGGLE_TRUTH).open(encoding="utf-8", newline="") as file:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    kit = next((folder / place for place in DEVELOPMENT_KIT if _has(TRUTH, CLASSES)(folder / place)), None)
    if kit is None:
        raise UserError(
            f"{folder} does not say of what classes ImageNet's validation images are: unpack the development kit into "
            f"it, which has {TRUTH} and {CLASSES}, or lay {KAGGLE_TRUTH} there"
        )
    try:
        synsets = read_mat(kit / CLASSES)["synsets"].ravel()
        ids = {int(synset["ILSVRC2012_ID"].item()): str(synset["WNID"].item()) for synset in synsets}
        labels = [int(line) for line in (kit / TRUTH).read_text(encoding="ascii").split()]
        return {f"ILSVRC2012_val_{number:08}": ids[label] for number, label in enumerate(labels, 1)}
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{kit}: {TRUTH} and {CLASSES} are not ImageNet's ({error})") from error


def _side_by_side(parts: Mapping[str, ImageFiles]) -> ImageFiles:
    """Return files as if they lay in folders of these names."""

    def found(name: str) -> tuple[ImageFiles, str]:
        folder, _, rest = name.partition("/")
        return parts[folder], rest

    def read(name: str) -> bytes:
        files, rest = found(name)
        return files.read(rest)

    def size(name: str) -> int:
        files, rest = found(name)
        return files.size(rest)

    names = [f"{folder}/{name}" for folder, files in parts.items() for name in files.names]
    return ImageFiles(names, read, size, [], [])


# What lies in the folder, and what loads it.
LAYOUTS: tuple[tuple[Callable[[Path], bool], Loader], ...] = (
    (_has("images", "meta/train.txt", "meta/test.txt"), _food),
    (_has("jpg", "imagelabels.mat", "setid.mat"), _flowers),
    (_has("train_32x32.mat", "test_32x32.mat"), _street_numbers),
    (_is_imagenet, _imagenet),
)
