"""Images prepared the way a network's metadata says: one file, or a split in batches."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from groupwise.data import Decoding, ImageBatches, Preprocessing, Split, Variation, read_image
from groupwise.models.network import Network, RewrittenNetwork


def preprocessing_of(network: Network | RewrittenNetwork) -> Preprocessing:
    """Return how a network wants its images. Raises UserError where its metadata do not say so."""
    return Preprocessing.of(network.metadata.get("preprocessing"), network.architecture["input_shape"][2])


def prepared_image(
    network: Network | RewrittenNetwork, source: Path | bytes, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Return an image file, by its path or its bytes, as a network wants it, of its own size or `size` (height, width).

    Raises:
        BrokenImage: the file cannot be read.
    """
    height, width, channels = network.architecture["input_shape"]
    return preprocessing_of(network).apply(read_image(source, channels), size or (height, width))


def make_batches(
    split: Split,
    network: Network | RewrittenNetwork,
    batch_size: int,
    variation: Variation | None = None,
    part: tuple[int, int] = (0, 1),
    pieces: int = 1,
) -> ImageBatches:
    """Return a split as batches of what a network wants, varied as for a training or as they are.

    Args:
        split: with the network's classes.
        network: with preprocessing and class names in its metadata.
        batch_size: images a batch, all its parts together.
        variation: as for a training; None for a test.
        part: (index, count): which of how many parts of every batch is wanted.
        pieces: in how many steps every batch is given.
    """
    height, width, channels = network.architecture["input_shape"]
    classes = len(network.metadata["class_names"])
    return ImageBatches(
        split.with_channels(channels),
        batch_size,
        (height, width, channels),
        classes,
        preprocessing_of(network),
        variation,
        Decoding(part=part, pieces=pieces),
    )
