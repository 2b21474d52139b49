"""Data sets of class folders: root/<class>/<image>, or the same below train/, test/ and val/."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, TypeAlias

import numpy as np

from groupwise.data.dataset import Dataset, Split, stratified_split
from groupwise.data.files import ImageFiles
from groupwise.data.images import ImageArray, read_header, read_image
from groupwise.data.left_out import check_left_out, no_images
from groupwise.errors import UserError

ROLES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
PROBED_HEADERS = 64

# A file by its path's parts below the data set's root, and its whole name.
Entry: TypeAlias = tuple[tuple[str, ...], str]


def dataset_of_files(name: str, files: ImageFiles, seed: int, test_fraction: float) -> Dataset:
    """The data set that image files make by the folders they lie in.

    The size and the channels are those of up to 64 images spread over the whole.

    Args:
        name: the data set's name.
        files: the images; a folder above the classes that holds everything is looked through.
        seed: settles the split where there is no test/ (nor val/, which then takes its place).
        test_fraction: the share to test on in such a split.

    Raises:
        UserError: no images, no class folders, one class, or classes that differ between the splits.
    """
    if not files.names:
        raise no_images(name, files.left_out)
    entries = _below_common_folders([(PurePosixPath(file).parts, file) for file in files.names])
    by_role = _by_role(name, entries)
    notes = check_left_out(name, files, _class_sizes(by_role))
    class_names = _class_names(name, by_role)
    image_size, channels = _probe(files)
    splits = {role: _split(part, class_names, files, channels) for role, part in by_role.items()}
    train, validation = splits["train"], splits.get("validation")
    if "test" in splits:
        test = splits["test"]
    elif validation is not None:
        test, validation = validation, None
    else:
        train, test = stratified_split(train, test_fraction, seed)
    return Dataset(name, class_names, train, test, validation, image_size, channels, tuple(notes))


def _below_common_folders(entries: list[Entry]) -> list[Entry]:
    """Takes away the folders that hold all others, as long as two levels are left: class and file."""
    while len({parts[0] for parts, _ in entries if len(parts) > 1}) == 1 and any(
        len(parts) > 2 for parts, _ in entries
    ):
        entries = [(parts[1:], file) for parts, file in entries if len(parts) > 1]
    return entries


def _by_role(name: str, entries: list[Entry]) -> dict[str, list[Entry]]:
    """The entries as class/file, of each split that there is; images outside of a class are left out."""
    folders = {parts[0].lower() for parts, _ in entries if len(parts) > 1}
    if not folders:
        raise UserError(f"{name} holds images but no class folders: put each class's images into a folder")
    roles = {ROLES.get(folder) for folder in folders}
    if "train" not in roles or None in roles:
        return {"train": [entry for entry in entries if len(entry[0]) > 1]}
    by_role: dict[str, list[Entry]] = defaultdict(list)
    for parts, file in entries:
        if len(parts) > 1:
            by_role[ROLES[parts[0].lower()]].append((parts[1:], file))
    for role, part in by_role.items():
        by_role[role] = [entry for entry in part if len(entry[0]) > 1]
        if not by_role[role]:
            raise UserError(f"{name}: its {role} folder holds images but no class folders, so no labels")
    return by_role


def _class_sizes(by_role: Mapping[str, Sequence[Entry]]) -> dict[str, int]:
    """How many images each class's folder holds, by its path below the data set's root."""
    entries = [entry for part in by_role.values() for entry in part]
    return Counter("/".join(PurePosixPath(file).parts[: 1 - len(parts)]) for parts, file in entries)


def _class_names(name: str, by_role: Mapping[str, list[Entry]]) -> tuple[str, ...]:
    classes = {role: {parts[0] for parts, _ in entries} for role, entries in by_role.items()}
    for role, found in classes.items():
        missing, extra = sorted(classes["train"] - found), sorted(found - classes["train"])
        if missing or extra:
            says = [f"{role} lacks {_some(missing)}"] * bool(missing)
            says += [f"{role} has {_some(extra)}, which train lacks"] * bool(extra)
            raise UserError(f"{name}: the class folders differ between train and {role}: {'; '.join(says)}")
    class_names = tuple(sorted(classes["train"]))
    if len(class_names) < 2:
        raise UserError(f"{name} has one class only, {class_names[0]!r}: two are needed to tell apart")
    return class_names


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _probe(files: ImageFiles) -> tuple[tuple[int, int] | None, Literal[1, 3]]:
    """What size the images have, if only one, and whether all are grey, by a sample of their headers."""
    count = len(files.names)
    sampled = {int(index) for index in np.linspace(0, count - 1, min(count, PROBED_HEADERS))}
    headers = []
    for index in sorted(sampled):
        try:
            headers.append(read_header(files.read(files.names[index])))
        except UserError:  # named when it is decoded
            continue
    readable = [header for header in headers if header is not None]
    sizes = {size for size, _ in readable}
    is_grey = bool(readable) and all(channels == 1 for _, channels in readable)
    return sizes.pop() if len(sizes) == 1 else None, 1 if is_grey else 3


def _split(entries: list[Entry], class_names: Sequence[str], files: ImageFiles, channels: Literal[1, 3]) -> Split:
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    names = [file for _, file in entries]

    def read(index: int, smallest_side: int | None) -> ImageArray:
        name = names[index]
        return read_image(files.read(name), channels, name=name, smallest_side=smallest_side)

    return Split(np.array([labels[parts[0]] for parts, _ in entries], np.int64), names, read)
