"""What a data set is to the rest of the package: class names and splits of labelled images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupwise.data.images import ImageArray
from groupwise.errors import UserError

Labels: TypeAlias = NDArray[np.int64]
Reader: TypeAlias = Callable[[int, int | None], ImageArray]


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images, read one at a time and only when asked for; read() may be called from many threads.

    Args:
        labels: int64, (n,): each image's class, an index into the data set's class names.
        names: each image's name, for messages.
        reader: (index, smallest side or None) to the image, uint8 (height, width, channels). It raises
            BrokenImage where there is none.

    Example:
        >>> split = Split(np.array([0, 1]), ["a", "b"], lambda index, side: np.zeros((8, 8, 1), np.uint8))
        >>> len(split), split.read(1).shape
        (2, (8, 8, 1))
    """

    labels: Labels
    names: Sequence[str]
    reader: Reader

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, smallest_side: int | None = None) -> ImageArray:
        """The image at index: uint8, (height, width, channels).

        A large JPEG may come smaller, down to twice smallest_side. Raises BrokenImage if it cannot be read.
        """
        return self.reader(index, smallest_side)

    def take(self, indices: NDArray[np.intp]) -> "Split":
        """The images at these indices, as a split of their own."""
        positions = [int(index) for index in indices]
        reader = self.reader
        return Split(
            self.labels[indices],
            [self.names[position] for position in positions],
            lambda index, smallest_side: reader(positions[index], smallest_side),
        )

    def with_channels(self, channels: int) -> "Split":
        """The same images in grey (1) or colour (3), whatever they are."""

        def read(index: int, smallest_side: int | None) -> ImageArray:
            image = self.reader(index, smallest_side)
            if image.shape[-1] == channels:
                return image
            if channels == 3:
                return np.repeat(image, 3, axis=-1)
            # The luma of ITU-R 601, as Pillow's conversion to grey.
            luma = image @ np.array([0.299, 0.587, 0.114])
            return np.rint(luma).astype(np.uint8)[..., None]

        return Split(self.labels, self.names, read)


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
        notes: sentences on what was left out, or might not be what was meant.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None
    image_size: tuple[int, int] | None
    channels: Literal[1, 3]
    notes: tuple[str, ...] = ()

    def relabelled(self, class_names: Sequence[str], places: Sequence[int]) -> "Dataset":
        """The same images with other classes: `places` has the new label of each old one."""

        def relabel(split: Split) -> Split:
            return replace(split, labels=np.array(places, np.int64)[split.labels])

        return replace(
            self,
            class_names=tuple(class_names),
            train=relabel(self.train),
            test=relabel(self.test),
            validation=None if self.validation is None else relabel(self.validation),
        )


def stratified_split(split: Split, test_fraction: float, seed: int) -> tuple[Split, Split]:
    """Divides a split into (train, test), each class by the same fraction, reproducibly by the seed.

    Of a class with two or more images at least one goes to either side; a single image is trained on.

    Args:
        split: the images to divide.
        test_fraction: the share of each class that is tested on, in (0, 1]; 1 tests on everything.
        seed: settles which images they are.

    Raises:
        ValueError: test_fraction is out of range.
        UserError: every class has only one image.
    """
    if not 0 < test_fraction <= 1:
        raise ValueError(f"test_fraction={test_fraction}: the share of images to test on lies in (0, 1]")
    if test_fraction == 1:
        return split.take(np.arange(0)), split
    generator = np.random.default_rng(seed)
    is_test = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = generator.permutation(np.flatnonzero(split.labels == label))
        count = min(max(1, round(len(members) * test_fraction)), len(members) - 1)
        is_test[members[:count]] = True
    if not is_test.any():
        raise UserError("no class has more than one image, so none are left to test on: add images to the classes")
    return split.take(np.flatnonzero(~is_test)), split.take(np.flatnonzero(is_test))
