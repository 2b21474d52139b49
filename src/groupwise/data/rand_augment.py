"""RandAugment (Cubuk et al. 2019): a few random operations per image, by Pillow."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageOps

from groupwise.data.images import ImageArray

GREY = 128
LARGEST_MAGNITUDE = 10


def rand_augment(image: ImageArray, generator: Generator, num_ops: float = 2, magnitude: float = 9) -> ImageArray:
    """Apply num_ops random operations of the given strength to an image.

    Args:
        image: uint8, (height, width, channels) with 1 or 3 channels.
        generator: where the randomness comes from.
        num_ops: operations an image.
        magnitude: their strength, 0 to 10, with the ranges of the paper's code.

    Returns:
        An image of the same shape.
    """
    # Not keras.layers.RandAugment: it computes all of its 11 operations num_ops times on the whole batch and
    # keeps one pair for all images. 512 images of 32x32x3 took it 0.8 s (TensorFlow), 2.9 s (JAX) and 2.5 s
    # (PyTorch) on one core; this takes 0.07 s.
    count = int(num_ops)
    choices = generator.integers(len(OPERATIONS), size=count)
    signs = generator.choice((-1.0, 1.0), size=count)
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for choice, sign in zip(choices, signs, strict=True):
        picture = OPERATIONS[choice](picture, magnitude / LARGEST_MAGNITUDE, sign)
    return np.asarray(picture).reshape(image.shape)


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    fill = GREY if picture.mode == "L" else (GREY, GREY, GREY)
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _rotate(picture: Image.Image, strength: float, sign: float) -> Image.Image:
    fill = GREY if picture.mode == "L" else (GREY, GREY, GREY)
    return picture.rotate(30 * strength * sign, Image.Resampling.BILINEAR, fillcolor=fill)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> "Operation":
    return lambda picture, strength, sign: kind(picture).enhance(1 + 0.9 * strength * sign)


Operation = Callable[[Image.Image, float, float], Image.Image]

# Each takes the picture, the strength in 0..1 and a sign of either direction; shears are by at most 0.3,
# shifts by at most 0.45 of the side, as in the paper's code.
OPERATIONS: tuple[Operation, ...] = (
    lambda picture, strength, sign: picture,
    lambda picture, strength, sign: ImageOps.autocontrast(picture),
    lambda picture, strength, sign: ImageOps.equalize(picture),
    lambda picture, strength, sign: ImageOps.solarize(picture, int(256 * (1 - strength))),
    lambda picture, strength, sign: ImageOps.posterize(picture, 8 - int(4 * strength)),
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _rotate,
    lambda picture, strength, sign: _affine(picture, (1, 0.3 * strength * sign, 0, 0, 1, 0)),
    lambda picture, strength, sign: _affine(picture, (1, 0, 0, 0.3 * strength * sign, 1, 0)),
    lambda picture, strength, sign: _affine(picture, (1, 0, 0.45 * picture.width * strength * sign, 0, 1, 0)),
    lambda picture, strength, sign: _affine(picture, (1, 0, 0, 0, 1, 0.45 * picture.height * strength * sign)),
)
