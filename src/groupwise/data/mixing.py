"""Augmentations that blend or cut: random erasing, CutMix, mixup.

Plain NumPy, and so the same on every backend, and one image at a time, so that it does not matter with which others it
is made. Keras's own layers were tried: keras.layers.MixUp and CutMix, on PyTorch, draw from a Beta distribution by
setting and resetting the global random state, which is neither reproducible nor harmless in a thread beside a training.
"""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groupwise.data.images import ImageArray

ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


def random_erasing(image: ImageArray, probability: float, fill: ImageArray, generator: Generator) -> ImageArray:
    """Fill a random rectangle, perhaps (Zhong et al. 2017, with the paper's areas and ratios).

    Args:
        image: uint8, (height, width, channels).
        probability: of the image's being erased in.
        fill: uint8, (channels,): the colour.
        generator: where the randomness comes from.

    Returns:
        An image of the same shape; the one given where nothing is erased.
    """
    if generator.random() >= probability:
        return image
    height, width, _ = image.shape
    area = height * width * generator.uniform(*ERASED_AREA)
    ratio = math.exp(generator.uniform(*np.log(ERASED_RATIO)))
    erased = image.copy()
    erased[_box(height, width, math.sqrt(area / ratio), math.sqrt(area * ratio), generator)] = fill
    return erased


def cut_mix(image: ImageArray, partner: ImageArray, alpha: float, generator: Generator) -> tuple[ImageArray, float]:
    """Paste a rectangle of another image into one (Yun et al. 2019).

    Args:
        image: uint8, (height, width, channels).
        partner: the other, of the same shape.
        alpha: the rectangle's share of the image is drawn from Beta(alpha, alpha).
        generator: where the randomness comes from.

    Returns:
        An image of the same shape, and the share of its area that is the partner's: the weight of the partner's label.
    """
    height, width, _ = image.shape
    side = math.sqrt(generator.beta(alpha, alpha))
    rows, columns = _box(height, width, side * height, side * width, generator)
    mixed = image.copy()
    mixed[rows, columns] = partner[rows, columns]
    return mixed, (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


def mix_up(
    image: ImageArray, partner: ImageArray, alpha: float, generator: Generator
) -> tuple[NDArray[np.float32], float]:
    """Blend an image with another (Zhang et al. 2017).

    Args:
        image: uint8, (height, width, channels).
        partner: the other, of the same shape.
        alpha: the partner's weight is drawn from Beta(alpha, alpha).
        generator: where the randomness comes from.

    Returns:
        A float32 image in 0..255, of the same shape, and the weight of the partner and its label.
    """
    share = np.float32(generator.beta(alpha, alpha))
    mixed = np.multiply(image, 1 - share, dtype=np.float32)
    mixed += np.multiply(partner, share, dtype=np.float32)
    return mixed, float(share)


def _box(height: int, width: int, box_height: float, box_width: float, generator: Generator) -> tuple[slice, slice]:
    """Return the rows and columns of a rectangle of about this size, anywhere within the image."""
    rows, columns = min(round(box_height), height), min(round(box_width), width)
    top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
    return slice(top, top + rows), slice(left, left + columns)
