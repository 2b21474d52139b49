"""How training images are varied: the settings, and the geometric part of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groupwise.core import library, resizing
from groupwise.data.images import ImageArray, Interpolation, resize

CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, in this order. The default changes nothing.

    Args:
        resized_crop: (low, high): a random part of the image, its area in this range (a share of the whole),
            its sides' ratio within 3:4 and 4:3, is scaled to the image size. None: the centre, as in a test.
        flip: mirror half of the images left to right.
        crop_padding: pad by this many pixels, reflecting the image, and cut the image size out at random.
        rand_augment: None, or {"num_ops": 2, "magnitude": 9}: that many of RandAugment's operations on each
            image, of strength 0 to 10.
        erase: the probability of filling a random rectangle with the mean colour.
        mixup: blend pairs of images and labels, the weight from Beta(mixup, mixup). 0: off.
        cutmix: paste a rectangle of another image, the area from Beta(cutmix, cutmix). 0: off. Where both
            mixup and cutmix are set, each image gets one of them, by a coin.

    Raises:
        ValueError: a setting is out of its range.

    Examples:
        >>> Augmentation(flip=True, crop_padding=4).mixup
        0.0
    """

    flip: bool = False
    crop_padding: int = 0
    resized_crop: tuple[float, float] | None = None
    rand_augment: Mapping[str, float] | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding={self.crop_padding}: a number of pixels is 0 or more")
        if self.resized_crop is not None:
            low, high = self.resized_crop
            if not 0 < low <= high <= 1:
                raise ValueError(f"resized_crop={self.resized_crop}: areas obey 0 < low <= high <= 1")
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if value < 0:
                raise ValueError(f"{name}={value}: the Beta distribution's parameter is positive, or 0 for none")
        if not 0 <= self.erase <= 1:
            raise ValueError(f"erase={self.erase}: a probability lies in 0 to 1")
        if self.rand_augment is not None:
            unknown = set(self.rand_augment) - {"num_ops", "magnitude"}
            if unknown:
                raise ValueError(f"rand_augment has no {sorted(unknown)}: it takes num_ops and magnitude")
            if not 0 <= self.rand_augment.get("magnitude", 9) <= 10:
                raise ValueError(f"rand_augment={self.rand_augment}: the magnitude lies in 0 to 10")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with their neighbours."""
        return bool(self.mixup or self.cutmix)


def flip_and_crop(image: ImageArray, augmentation: Augmentation, generator: Generator) -> ImageArray:
    """Mirror and shift an image.

    Args:
        image: uint8, (height, width, channels).
        augmentation: of which flip and crop_padding are looked at.
        generator: where the randomness comes from.

    Returns:
        An image of the same shape.
    """
    # By places, not by keras.layers.RandomFlip and RandomTranslation: an image of 32x32x3 takes 10 microseconds on one
    # core, as part of a batch those two layers 80 with TensorFlow, 440 with JAX, 1000 with PyTorch.
    padding = augmentation.crop_padding
    if padding:
        height, width, _ = image.shape
        top, left = generator.integers(2 * padding + 1), generator.integers(2 * padding + 1)
        rows = _reflected(height, padding)[top : top + height]
        columns = _reflected(width, padding)[left : left + width]
        image = image.take(rows, axis=0).take(columns, axis=1)
    if augmentation.flip and generator.random() < 0.5:
        image = _mirrored(image)
    return image


def _mirrored(image: ImageArray) -> ImageArray:
    """Return an image the other way round, in memory too: by whole pixels, which takes a third of the time."""
    pixels = np.ascontiguousarray(image).view(f"V{image.shape[-1]}")
    return np.ascontiguousarray(pixels[:, ::-1]).view(np.uint8)


@cache
def _reflected(length: int, padding: int) -> NDArray[np.intp]:
    """Return the places along a side that is padded by reflection."""
    return np.pad(np.arange(length), padding, mode="reflect")


def random_resized_crop(
    image: ImageArray,
    image_size: tuple[int, int],
    area: tuple[float, float],
    generator: Generator,
    interpolation: Interpolation,
    flip: bool = False,
) -> ImageArray:
    """Scale a random part of an image to image_size (Szegedy et al. 2015, section 6).

    Args:
        image: uint8, (height, width, channels).
        image_size: the (height, width) of the result.
        area: the range of the part's area, as a share of the image's.
        generator: where the randomness comes from.
        interpolation: Pillow's filter.
        flip: whether half of the results are mirrored.

    Returns:
        A uint8 array of shape (*image_size, channels).
    """
    height, width = image.shape[:2]
    low, high = area
    for _ in range(CROP_TRIES):
        area_draw, ratio_draw, top_draw, left_draw = generator.random(4)
        part = height * width * (low + (high - low) * area_draw)
        ratio = (3 / 4) ** (1 - 2 * ratio_draw)
        part_height, part_width = round((part / ratio) ** 0.5), round((part * ratio) ** 0.5)
        if 0 < part_height <= height and 0 < part_width <= width:
            top, left = int(top_draw * (height - part_height + 1)), int(left_draw * (width - part_width + 1))
            break
    else:  # a very long image: its largest centred part of an allowed ratio
        ratio = min(max(width / height, 3 / 4), 4 / 3)
        part_height, part_width = min(height, round(width / ratio)), min(width, round(height * ratio))
        top, left = (height - part_height) // 2, (width - part_width) // 2
    part = image[top : top + part_height, left : left + part_width]
    return resized(part, image_size, interpolation, flip and generator.random() < 0.5)


def resized(
    image: ImageArray, image_size: tuple[int, int], interpolation: Interpolation, mirrored: bool = False
) -> ImageArray:
    """Return an image, or a part of one, at a size, perhaps mirrored: by the core in a fourth of Pillow's time."""
    if interpolation in resizing.FILTERS and library.is_available():
        return resizing.resize(image, image_size, interpolation, mirrored)
    result = resize(image, image_size, interpolation)
    return _mirrored(result) if mirrored else result
