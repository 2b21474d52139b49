"""Augmentations that blend or cut: random erasing, CutMix, mixup.

Plain NumPy, and so the same on every backend. Keras's own layers were tried: keras.layers.MixUp, CutMix and
RandomErasing take 10 to 80 ms for 512 images of 32x32x3 on one core, where these functions take 1 to 6 ms; and
MixUp and CutMix, on PyTorch, draw from a Beta distribution by setting and resetting the global random state,
which is neither reproducible nor harmless in a thread beside the training.
"""

import math

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groupwise.data.images import ImageArray

ERASED_AREA = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


def random_erasing(images: ImageArray, probability: float, fill: ImageArray, generator: Generator) -> ImageArray:
    """Fill a random rectangle in some images (Zhong et al. 2017, with the paper's areas and ratios).

    Args:
        images: uint8, (batch, height, width, channels).
        probability: of each image's being erased in.
        fill: uint8, (channels,): the colour.
        generator: where the randomness comes from.

    Returns:
        A batch of the same shape.
    """
    _, height, width, _ = images.shape
    erased = images.copy()
    for index in np.flatnonzero(generator.random(len(images)) < probability):
        area = height * width * generator.uniform(*ERASED_AREA)
        ratio = math.exp(generator.uniform(*np.log(ERASED_RATIO)))
        rows, columns = _box(height, width, math.sqrt(area / ratio), math.sqrt(area * ratio), generator)
        erased[index, rows, columns] = fill
    return erased


def cut_mix(
    images: ImageArray, labels: NDArray[np.float32], alpha: float, generator: Generator
) -> tuple[ImageArray, NDArray[np.float32]]:
    """Paste a rectangle of another image into each (Yun et al. 2019).

    Args:
        images: uint8, (batch, height, width, channels).
        labels: float32, (batch, classes).
        alpha: the rectangle's share of the image is drawn from Beta(alpha, alpha).
        generator: where the randomness comes from.

    Returns:
        Images and labels of the same shapes, the labels weighted by the area that each image has.
    """
    batch, height, width, _ = images.shape
    partners = generator.permutation(batch)
    sides = np.sqrt(generator.beta(alpha, alpha, batch))
    mixed = images.copy()
    shares = np.empty((batch, 1), np.float32)
    for index, (partner, side) in enumerate(zip(partners, sides, strict=True)):
        rows, columns = _box(height, width, side * height, side * width, generator)
        mixed[index, rows, columns] = images[partner, rows, columns]
        shares[index] = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return mixed, labels * (1 - shares) + labels[partners] * shares


def mix_up(
    images: ImageArray, labels: NDArray[np.float32], alpha: float, generator: Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Blend each image, and its label, with another (Zhang et al. 2017).

    Args:
        images: uint8, (batch, height, width, channels).
        labels: float32, (batch, classes).
        alpha: the other's weight is drawn from Beta(alpha, alpha).
        generator: where the randomness comes from.

    Returns:
        Float32 images in 0..255 and labels, of the same shapes.
    """
    partners = generator.permutation(len(images))
    shares = generator.beta(alpha, alpha, len(images)).astype(np.float32)
    flat = images.reshape(len(images), -1)
    mixed = np.multiply(flat, 1 - shares[:, None], dtype=np.float32)
    mixed += np.multiply(flat[partners], shares[:, None], dtype=np.float32)
    return mixed.reshape(images.shape), labels * (1 - shares[:, None]) + labels[partners] * shares[:, None]


def _box(height: int, width: int, box_height: float, box_width: float, generator: Generator) -> tuple[slice, slice]:
    """Return the rows and columns of a rectangle of about this size, anywhere within the image."""
    rows, columns = min(round(box_height), height), min(round(box_width), width)
    top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
    return slice(top, top + rows), slice(left, left + columns)
