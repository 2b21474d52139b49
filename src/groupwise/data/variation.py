"""How a training varies its images: each by random numbers of its own, whoever makes it and when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from groupwise.data.augmentation import Augmentation, flip_and_crop, random_resized_crop, resized
from groupwise.data.images import ImageArray, Interpolation
from groupwise.data.mixing import cut_mix, mix_up, random_erasing
from groupwise.data.rand_augment import rand_augment


@dataclass(frozen=True)
class Variation:
    """How a training varies what it sees; a test varies nothing.

    Attributes:
        augmentation: how images are varied; None for a test.
        label_smoothing: the share of each label that is spread evenly over all classes, in [0, 1).
        shuffle: whether each epoch has a random order.
        seed: 0 or more; settles order and augmentation.
        image_sizes: (height, width) of the images, by the epoch from which on they have it; in epochs before all of
            these they have the network's.

    Raises:
        ValueError: a value is out of its range.
    """

    augmentation: Augmentation | None = None
    label_smoothing: float = 0.0
    shuffle: bool = False
    seed: int = 0
    image_sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: a share lies in 0 to 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: a seed is 0 or more")

    def size_in(self, epoch: int) -> tuple[int, int] | None:
        """Return the (height, width) of an epoch's images; None: the network's.

        Examples:
            >>> [Variation(image_sizes={0: (16, 16), 2: (32, 32)}).size_in(epoch) for epoch in range(3)]
            [(16, 16), (16, 16), (32, 32)]
        """
        begun = [begin for begin in self.image_sizes if begin <= epoch]
        return self.image_sizes[max(begun)] if begun else None

    def generator(self, epoch: int, place: int) -> Generator:
        """Return the random numbers of the image at a place of an epoch's order."""
        # A hash as seed, since NumPy's own mixing of seeds takes five times as long, as long as to vary a small image.
        name = f"{self.seed} {epoch} {place}".encode()
        return Generator(PCG64(_Words(np.frombuffer(blake2b(name, digest_size=32).digest(), np.uint64))))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Words(ISeedSequence):
    """Seeds a generator with words as they are."""

    words: NDArray[np.uint64]

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        """Return the words: NumPy asks for four of 64 bits."""
        return self.words


@dataclass(frozen=True)
class Varying:
    """What an augmentation does to one image, and to one of a pair.

    Attributes:
        augmentation: what is to be done.
        image_size: (height, width) of the result.
        interpolation: Pillow's filter, for crops of any size, and images that become smaller.
        fill: uint8, (channels,): the colour that is erased with.
    """

    augmentation: Augmentation
    image_size: tuple[int, int]
    interpolation: Interpolation
    fill: ImageArray

    def vary(self, image: ImageArray, generator: Generator) -> ImageArray:
        """Return an image, uint8 (height, width, channels), varied by itself and of the size wanted."""
        augmentation, flip = self.augmentation, self.augmentation.flip
        area = augmentation.resized_crop
        if area is not None:
            # Mirrored on the way, where nothing else comes between.
            at_once = flip and not augmentation.crop_padding
            image = random_resized_crop(image, self.image_size, area, generator, self.interpolation, at_once)
            flip = flip and not at_once
        if flip or augmentation.crop_padding:
            image = flip_and_crop(image, augmentation, generator)
        if augmentation.rand_augment is not None:
            image = rand_augment(image, generator, **augmentation.rand_augment)
        if augmentation.erase:
            image = random_erasing(image, augmentation.erase, self.fill, generator)
        # Last: a padding of so many pixels is meant for the image as it came.
        return image if image.shape[:2] == self.image_size else resized(image, self.image_size, self.interpolation)

    def mix(
        self, image: ImageArray, partner: ImageArray, generator: Generator
    ) -> tuple[ImageArray | NDArray[np.float32], float]:
        """Return an image mixed with its partner, in 0..255, and the partner's share of it."""
        augmentation = self.augmentation
        if augmentation.mixup and (not augmentation.cutmix or generator.random() < 0.5):
            return mix_up(image, partner, augmentation.mixup, generator)
        return cut_mix(image, partner, augmentation.cutmix, generator)
