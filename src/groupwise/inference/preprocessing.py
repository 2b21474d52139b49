"""Images as a network wants them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groupwise.data import Augmentation, ImageBatches, Split, centre_crop, prepare_image, read_image
from groupwise.models.network import Network, RewrittenNetwork


def prepared_image(
    network: Network | RewrittenNetwork, path: Path, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Return an image file as a network wants it, of its own size or of `size` (height, width).

    Raises:
        BrokenImage: the file cannot be read.
    """
    height, width, channels = network.architecture["input_shape"]
    preprocessing = network.metadata["preprocessing"]
    mean, std = (np.asarray(preprocessing[name], np.float32) for name in ("mean", "std"))
    options = {name: preprocessing[name] for name in ("crop", "interpolation", "offset") if name in preprocessing}
    pixels = prepare_image(read_image(path, channels), size or (height, width), **options)
    return ((pixels / np.float32(255) - mean) / std).astype(np.float32)


def crop_box(network: Network | RewrittenNetwork, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of what a network sees of an image of (height, width), in its pixels."""
    preprocessing, (height, width, _) = network.metadata["preprocessing"], network.architecture["input_shape"]
    scaled, (top, left) = centre_crop(size, (height, width), preprocessing["crop"], preprocessing.get("offset", "even"))
    vertical, horizontal = size[0] / scaled[0], size[1] / scaled[1]
    return left * horizontal, top * vertical, (left + width) * horizontal, (top + height) * vertical


def make_batches(
    split: Split,
    network: Network,
    batch_size: int,
    *,
    augmentation: Augmentation | None = None,
    label_smoothing: float = 0.0,
    shuffle: bool = False,
    seed: int = 0,
) -> ImageBatches:
    """Return a split as batches prepared the way the network's metadata says."""
    height, width, channels = network.architecture["input_shape"]
    preprocessing = network.metadata["preprocessing"]
    return ImageBatches(
        split.with_channels(channels),
        batch_size,
        (height, width),
        channels,
        len(network.metadata["class_names"]),
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        crop=preprocessing["crop"],
        offset=preprocessing.get("offset", "even"),
        interpolation=preprocessing["interpolation"],
        augmentation=augmentation,
        label_smoothing=label_smoothing,
        shuffle=shuffle,
        seed=seed,
    )
