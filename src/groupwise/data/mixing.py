"""The augmentations that concern a whole batch, by Keras's own layers: MixUp, CutMix, RandomErasing."""

import warnings
from typing import TypeAlias

import keras
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groupwise.data.augmentation import Augmentation
from groupwise.data.images import ImageArray

FloatArray: TypeAlias = NDArray[np.float32]

OPTIONS = {"data_format": "channels_last", "dtype": "float32", "seed": 0}  # each batch sets its own seed

# keras.layers.MixUp asks JAX for int64 indices, and JAX says on every run that they are int32.
warnings.filterwarnings("ignore", message="Explicitly requested dtype.*int64", category=UserWarning)


class Mixer:
    """Mixes and erases batches as an Augmentation says, reproducibly.

    Args:
        augmentation: of which mixup, cutmix and erase are looked at.
        fill: the grey of erased rectangles, in 0..255. (RandomErasing takes a colour too, but not on JAX.)
    """

    def __init__(self, augmentation: Augmentation, fill: float) -> None:
        self._mixers: list[keras.layers.Layer] = []
        if augmentation.mixup:
            self._mixers.append(keras.layers.MixUp(augmentation.mixup, **OPTIONS))
        if augmentation.cutmix:
            factor = (augmentation.cutmix, augmentation.cutmix)
            self._mixers.append(keras.layers.CutMix(factor, **OPTIONS))
        self._eraser = None
        if augmentation.erase:
            self._eraser = keras.layers.RandomErasing(
                (augmentation.erase, augmentation.erase), fill_value=fill, **OPTIONS
            )

    def __call__(
        self, images: ImageArray, labels: FloatArray, generator: Generator
    ) -> tuple[ImageArray | FloatArray, FloatArray]:
        """Mixes a batch.

        Args:
            images: uint8, (batch, height, width, channels).
            labels: float32, (batch, classes), rows that sum to 1.
            generator: where the randomness comes from.

        Returns:
            The images, now float32 in 0..255 unless there is nothing to do, and the labels, of the same shapes.
        """
        layers = [self._mixers[generator.integers(len(self._mixers))]] if self._mixers else []
        layers += [self._eraser] if self._eraser else []
        if not layers:
            return images, labels
        mixed = {"images": images.astype(np.float32), "labels": labels}
        for layer in layers:
            # The batch's own seed, so that a training that goes on later mixes what it would have mixed.
            layer.generator.state.assign(np.array([generator.integers(2**31), 0], dtype="uint32"))
            with keras.device("cpu"):  # the threads that prepare batches leave the accelerator alone
                mixed = layer(mixed, training=True)
        return keras.ops.convert_to_numpy(mixed["images"]), keras.ops.convert_to_numpy(mixed["labels"])
