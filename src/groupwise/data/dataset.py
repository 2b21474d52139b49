"""What a data set is to the rest of the package: class names and splits of labelled images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupwise.data.images import ImageArray
from groupwise.errors import UserError

Labels: TypeAlias = NDArray[np.int64]
Reader: TypeAlias = Callable[[int, int | None], ImageArray]
Identities: TypeAlias = NDArray[np.uint64]

IDENTITY_BITS = 48
"""Of an image's identity: among a million images one in 300 data sets has two of the same."""


@dataclass(frozen=True)
class SplitRule:
    """How images are divided where a data set has no test images of its own: by a hash of each (`divide`).

    Attributes:
        seed: another one makes another split.
        share: of the images to test on, in (0, 1]; 1 tests on everything.
    """

    seed: int = 0
    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"test_fraction={self.share}: the share of images to test on lies in (0, 1]")


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, read one at a time and only when asked for; read() may be called from many threads.

    Args:
        labels: int64, (n,): each image's class, an index into the data set's class names.
        names: each image's name, for messages.
        reader: (index, smallest side or None) to the image, uint8 (height, width, channels). It raises
            BrokenImage where there is none.
        mark: index to what tells an image from all others, wherever the data set lies and whatever else is in it: its
            class and name, or its pixels. Default: its name.
        size: index to the bytes of its file, which tell files of the same mark apart. Default: 0.
        file: index to its file's content, where it is a file; it raises as reader does.

    Examples:
        >>> split = Split(np.array([0, 1]), ["a", "b"], lambda index, side: np.zeros((8, 8, 1), np.uint8))
        >>> len(split), split.read(1).shape
        (2, (8, 8, 1))
    """

    labels: Labels
    names: Sequence[str]
    reader: Reader
    mark: Callable[[int], bytes] | None = None
    size: Callable[[int], int] | None = None
    file: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, smallest_side: int | None = None) -> ImageArray:
        """Return the image at index: uint8, (height, width, channels).

        A large JPEG may come smaller, down to twice smallest_side. Raises BrokenImage if it cannot be read.
        """
        return self.reader(index, smallest_side)

    def take(self, indices: NDArray[np.intp]) -> "Split":
        """Return the images at these indices, as a split of their own."""
        positions = [int(index) for index in indices]
        reader, mark, size, file = self.reader, self.mark, self.size, self.file
        return Split(
            self.labels[indices],
            [self.names[position] for position in positions],
            lambda index, smallest_side: reader(positions[index], smallest_side),
            None if mark is None else lambda index: mark(positions[index]),
            None if size is None else lambda index: size(positions[index]),
            None if file is None else lambda index: file(positions[index]),
        )

    def with_channels(self, channels: int) -> "Split":
        """Return the same images in grey (1) or colour (3), whatever they are."""

        def read(index: int, smallest_side: int | None) -> ImageArray:
            image = self.reader(index, smallest_side)
            if image.shape[-1] == channels:
                return image
            if channels == 3:
                return np.repeat(image, 3, axis=-1)
            # The luma of ITU-R 601, as Pillow's conversion to grey.
            luma = image @ np.array([0.299, 0.587, 0.114])
            return np.rint(luma).astype(np.uint8)[..., None]

        return replace(self, reader=read)

    def hashes(self, seed: int) -> NDArray[np.uint64]:
        """64 bits of every image's mark and a seed, (n,): the same on every machine."""
        return np.array([_hash(b"%d" % seed, self.marked(index)) for index in range(len(self))], np.uint64)

    def identities(self) -> Identities:
        """Return what every image is known by, (n,): 48 bits of its mark and its file's size."""
        return self._identities

    @cached_property
    def _identities(self) -> Identities:
        # Asked for once by each that divides, compares and records; every file is looked up.
        sizes = (0 if self.size is None else self.size(index) for index in range(len(self)))
        values = [_hash(b"%d" % size, self.marked(index)) for index, size in enumerate(sizes)]
        return np.array(values, np.uint64) >> np.uint64(64 - IDENTITY_BITS)

    def marked(self, index: int) -> bytes:
        """Return what tells the image at index from all others."""
        return self.names[index].encode(errors="surrogatepass") if self.mark is None else self.mark(index)


def _hash(*parts: bytes) -> int:
    return int.from_bytes(blake2b(b"\0".join(parts), digest_size=8).digest(), "big")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, as load_dataset returns it.

    Attributes:
        name: the source's name, such as "digits" or "cifar10-images.zip".
        class_names: the classes in the order of the labels.
        train: what is learnt from. Empty only where load_dataset was told to test on everything.
        test: what the accuracy is measured on.
        validation: what decisions in training may look at, where the source has such a split; else None.
        image_size: the (height, width) of the images, or None if they differ.
        channels: 1 for grey images, 3 for colour.
        undivided: all images, where the source has no test images of its own; else None.
        rule: how these were divided into train and test.
        notes: sentences on what was left out, or might not be what was meant.
        validation_rule: how `validation` was taken from the images to train on; None where the source has its own, or
            there is none.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None
    image_size: tuple[int, int] | None
    channels: Literal[1, 3]
    undivided: Split | None = None
    rule: SplitRule = SplitRule()
    notes: tuple[str, ...] = ()
    validation_rule: SplitRule | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """Those that it has, by their names: every image is in one of them."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def divided(self, rule: SplitRule, trained: Identities | None = None) -> "Dataset":
        """Return the same data set, divided by another rule; itself where it has test images of its own.

        Args:
            rule: the rule.
            trained: the identities of images that stay on the side that is trained on.

        Raises:
            UserError: no image is left to test on.
        """
        if self.undivided is None:
            return self
        train, test = divide(self.undivided, rule, trained)
        return replace(self, train=train, test=test, validation=None, rule=rule, validation_rule=None)

    def with_validation(self, rule: SplitRule, trained: Identities | None = None) -> "Dataset":
        """Return the same data set with a share of the images to train on set aside for validation.

        Args:
            rule: how they are chosen: by a hash of each, another one than chooses those to test on.
            trained: the identities of images that are not set aside, since they were trained on.

        Raises:
            UserError: none can be set aside.
        """
        # Of the images with the smallest hashes those that are tested on are gone.
        is_validation = _is_set_aside(self.train, replace(rule, seed=-1 - rule.seed), _untrained(self.train, trained))
        if not is_validation.any():
            raise UserError(f"none of the images of {self.name} is left for validation, all being needed or trained on")
        train, validation = (self.train.take(np.flatnonzero(side)) for side in (~is_validation, is_validation))
        return replace(self, train=train, validation=validation, validation_rule=rule)

    def relabelled(self, class_names: Sequence[str], places: Sequence[int]) -> "Dataset":
        """Return the same images with other classes: `places` has the new label of each old one."""

        def relabel(split: Split) -> Split:
            return replace(split, labels=np.array(places, np.int64)[split.labels])

        return replace(
            self,
            class_names=tuple(class_names),
            train=relabel(self.train),
            test=relabel(self.test),
            validation=None if self.validation is None else relabel(self.validation),
            undivided=None if self.undivided is None else relabel(self.undivided),
        )


def dataset_of_splits(
    name: str,
    class_names: tuple[str, ...],
    splits: Mapping[str, Split],
    image_size: tuple[int, int] | None,
    channels: Literal[1, 3],
    rule: SplitRule,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """Return the data set of "train" and perhaps "test" and "validation".

    Where there is no test, validation takes its place; where there is neither, the rule divides.
    """
    train, test, validation = splits["train"], splits.get("test"), splits.get("validation")
    if test is None:
        test, validation = validation, None
    whole = Dataset(name, class_names, train, test or train, validation, image_size, channels, rule=rule, notes=notes)
    return whole if test is not None else replace(whole, undivided=train).divided(rule)


def divide(split: Split, rule: SplitRule, trained: Identities | None = None) -> tuple[Split, Split]:
    """Divide a split into (train, test).

    An image is tested on where its hash is below the share of the largest one, so that images which are added or taken
    away never move others, and classes have about the share, not exactly. Of a class of two or more images at least one
    goes to either side: where the hash puts all on one, the nearest to the other crosses over (and may come back when
    others are added); a single image is trained on.

    Args:
        split: the images to divide.
        rule: how.
        trained: the identities of images that are not to be tested on, whatever the rule says.

    Raises:
        UserError: no image is left to test on.
    """
    if rule.share == 1:
        return split.take(np.arange(0)), split
    may_test = _untrained(split, trained)
    is_test = _is_set_aside(split, rule, may_test)
    if not is_test.any():
        if not may_test.all():
            raise UserError("none of the images is left to test on, since all were trained on: add some to the classes")
        raise UserError("no class has more than one image, so none are left to test on: add images to the classes")
    return split.take(np.flatnonzero(~is_test)), split.take(np.flatnonzero(is_test))


def _untrained(split: Split, trained: Identities | None) -> NDArray[np.bool_]:
    return np.ones(len(split), bool) if trained is None else ~np.isin(split.identities(), trained)


def _is_set_aside(split: Split, rule: SplitRule, may_be: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which images a rule sets aside, of those that may be."""
    hashes = split.hashes(rule.seed)
    is_aside = (hashes / 2.0**64 < rule.share) & may_be
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        members = members[np.argsort(hashes[members], kind="stable")]
        if is_aside[members].all():
            is_aside[members[-1]] = False
        elif len(members) > 1 and not is_aside[members].any():
            is_aside[members[may_be[members]][:1]] = True
    return is_aside
