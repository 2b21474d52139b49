"""Images in: data sets from many kinds of source, decoded in parallel into batches for Keras.

Importing this package imports no framework; Keras comes with the first use of ImageBatches.
"""

from typing import TYPE_CHECKING

from groupwise.lazy import members_at_use

if TYPE_CHECKING:
    from groupwise.data.augmentation import Augmentation
    from groupwise.data.batches import ImageBatches
    from groupwise.data.dataset import Dataset, Split
    from groupwise.data.images import BrokenImage, centre_crop, prepare_image, read_image
    from groupwise.data.loading import load_dataset
    from groupwise.data.preprocessing import Preprocessing
    from groupwise.data.samples import Decoding, TooManyBroken
    from groupwise.data.sharding import write_shards
    from groupwise.data.variation import Variation
else:
    __getattr__, __dir__ = members_at_use(
        __name__,
        {
            "Augmentation": "augmentation",
            "BrokenImage": "images",
            "Dataset": "dataset",
            "Decoding": "samples",
            "ImageBatches": "batches",
            "Preprocessing": "preprocessing",
            "Split": "dataset",
            "TooManyBroken": "samples",
            "Variation": "variation",
            "centre_crop": "images",
            "load_dataset": "loading",
            "prepare_image": "images",
            "read_image": "images",
            "write_shards": "sharding",
        },
    )

__all__ = [
    "Augmentation",
    "BrokenImage",
    "Dataset",
    "Decoding",
    "ImageBatches",
    "Preprocessing",
    "Split",
    "TooManyBroken",
    "Variation",
    "centre_crop",
    "load_dataset",
    "prepare_image",
    "read_image",
    "write_shards",
]
