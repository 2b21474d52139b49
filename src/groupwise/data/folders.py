"""Data sets of class folders: root/<class>/<image>, or the same below train/, test/ and val/."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from groupwise.data.classes import loosest_form, match_names, normal_form, some
from groupwise.data.dataset import Dataset, Split, SplitRule, dataset_of_splits
from groupwise.data.files import ImageFiles, parts_of
from groupwise.data.images import ImageArray, read_header, read_image
from groupwise.data.layout import Entry, find_layout
from groupwise.data.left_out import check_left_out, no_images
from groupwise.errors import UserError
from groupwise.texts import quoted

PROBED_HEADERS = 64


def dataset_of_files(name: str, files: ImageFiles, rule: SplitRule) -> Dataset:
    """Return the data set that image files make by the folders they lie in.

    The size and the channels are those of up to 64 images spread over the whole.

    Args:
        name: the data set's name.
        files: the images; a folder above the classes that holds everything is looked through.
        rule: divides them where there is no test/ (nor val/, which then takes its place).

    Raises:
        UserError: no images, no class folders, one class, classes that differ between the splits, or folders that may
            be splits as well as classes.
    """
    if not files.names:
        raise no_images(name, files.left_out)
    layout = find_layout(name, [(parts_of(file), file) for file in files.names])
    left_out = check_left_out(name, files, _class_sizes(layout.by_role))
    return dataset_of_entries(name, layout.by_role, files, rule, (*layout.notes, *left_out))


def dataset_of_entries(
    name: str, by_role: Mapping[str, list[Entry]], files: ImageFiles, rule: SplitRule, notes: Sequence[str] = ()
) -> Dataset:
    """Return the data set of image files whose classes are known.

    Args:
        name: the data set's name.
        by_role: "train", and perhaps "test" and "validation", to entries: (class, place, ...) and the file's name.
        files: what reads them.
        rule: as for `dataset_of_files`.
        notes: sentences on what was left out.

    Raises:
        UserError: there are no images, one class, or classes that differ between the splits.
    """
    if not by_role.get("train"):
        raise UserError(f"{name} is empty: it names no images to train on")
    class_names = _class_names(name, by_role["train"])
    image_size, channels = _probe([file for entries in by_role.values() for _, file in entries], files)
    splits = {
        role: _split(entries, _labels(name, role, entries, class_names), files, channels)
        for role, entries in by_role.items()
    }
    alike = (f"{name}: {some(names)} are taken for different classes" for names in _alike(class_names))
    return dataset_of_splits(name, class_names, splits, image_size, channels, rule, (*notes, *alike))


def _class_sizes(by_role: Mapping[str, list[Entry]]) -> dict[str, int]:
    """Return how many images each class's folder holds, by its path below the data set's root."""
    entries = [entry for part in by_role.values() for entry in part]
    return Counter("/".join(parts_of(file)[: 1 - len(parts)]) for parts, file in entries)


def _class_names(name: str, entries: list[Entry]) -> tuple[str, ...]:
    class_names = tuple(sorted({parts[0] for parts, _ in entries}))
    if len(class_names) < 2:
        raise UserError(f"{name} has one class only, {quoted(class_names[0])}: two are needed to tell apart")
    return class_names


def _alike(class_names: Sequence[str]) -> list[list[str]]:
    """Return the classes that differ only in how their names are written."""
    by_form: dict[str, list[str]] = {}
    for name in class_names:
        by_form.setdefault(loosest_form(name), []).append(name)
    return [names for names in by_form.values() if len(names) > 1]


def _labels(name: str, role: str, entries: list[Entry], class_names: Sequence[str]) -> Mapping[str, int]:
    """Return the label of each class folder of a split. Raises UserError where they are not the training images'."""
    found = sorted({parts[0] for parts, _ in entries})
    labels = match_names(found, class_names)
    extra = [folder for folder in found if folder not in labels]
    missing = [class_names[label] for label in sorted(set(range(len(class_names))) - set(labels.values()))]
    if missing or extra:
        says = [f"{role} lacks {some(missing)}"] * bool(missing)
        says += [f"{role} has {some(extra)}, which train lacks"] * bool(extra)
        raise UserError(f"{name}: the class folders differ between train and {role}: {'; '.join(says)}")
    return labels


def _probe(names: Sequence[str], files: ImageFiles) -> tuple[tuple[int, int] | None, Literal[1, 3]]:
    """Return what size the images have, if only one, and whether all are grey, by a sample of their headers."""
    count = len(names)
    sampled = {int(index) for index in np.linspace(0, count - 1, min(count, PROBED_HEADERS))}
    headers = []
    for index in sorted(sampled):
        try:
            headers.append(read_header(files.read(names[index])))
        except UserError:  # named when it is decoded
            continue
    readable = [header for header in headers if header is not None]
    sizes = {size for size, _ in readable}
    is_grey = bool(readable) and all(channels == 1 for _, channels in readable)
    return sizes.pop() if len(sizes) == 1 else None, 1 if is_grey else 3


def _split(entries: list[Entry], labels: Mapping[str, int], files: ImageFiles, channels: Literal[1, 3]) -> Split:
    names = [file for _, file in entries]
    class_forms = {folder: loosest_form(folder) for folder in labels}

    def read(index: int, smallest_side: int | None) -> ImageArray:
        name = names[index]
        return read_image(files.read(name), channels, name=name, smallest_side=smallest_side)

    def mark(index: int) -> bytes:
        folder, *place = entries[index][0]
        return "\0".join((class_forms[folder], *map(normal_form, place))).encode(errors="surrogatepass")

    def size(index: int) -> int:
        return files.size(names[index])

    def content(index: int) -> bytes:
        return files.read(names[index])

    return Split(np.array([labels[parts[0]] for parts, _ in entries], np.int64), names, read, mark, size, content)
