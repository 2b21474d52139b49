"""The augmentations that concern a whole batch, by Keras's own layers: MixUp, CutMix, RandomErasing."""

import warnings
from collections.abc import Sequence

import keras
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groupwise.data.augmentation import Augmentation

FloatArray = NDArray[np.float32]

# keras.layers.MixUp asks JAX for int64 indices, and JAX says on every run that they are int32.
warnings.filterwarnings("ignore", message="Explicitly requested dtype.*int64", category=UserWarning)


class Mixer:
    """Mixes and erases batches as an Augmentation says, reproducibly.

    Args:
        augmentation: of which mixup, cutmix and erase are looked at.
        fill: the colour of erased rectangles, a number in 0..255 for each channel.
    """

    def __init__(self, augmentation: Augmentation, fill: Sequence[float]) -> None:
        # The seeds here are placeholders: each batch sets its own.
        self._mixers: list[keras.layers.Layer] = []
        if augmentation.mixup:
            self._mixers.append(keras.layers.MixUp(augmentation.mixup, seed=0, **OPTIONS))
        if augmentation.cutmix:
            factor = (augmentation.cutmix, augmentation.cutmix)
            self._mixers.append(keras.layers.CutMix(factor, seed=0, **OPTIONS))
        self._eraser = None
        if augmentation.erase:
            self._eraser = keras.layers.RandomErasing(
                (augmentation.erase, augmentation.erase),
                fill_value=tuple(fill) if len(fill) == 3 else float(fill[0]),
                seed=0,
                **OPTIONS,
            )

    def __call__(
        self, images: FloatArray, labels: FloatArray, generator: Generator
    ) -> tuple[FloatArray, FloatArray]:
        """Mixes a batch.

        Args:
            images: float32, (batch, height, width, channels), in 0..255.
            labels: float32, (batch, classes), rows that sum to 1.
            generator: where the randomness comes from.

        Returns:
            The images and the labels, of the same shapes.
        """
        layers = [self._mixers[generator.integers(len(self._mixers))]] if self._mixers else []
        layers += [self._eraser] if self._eraser else []
        for layer in layers:
            # The batch's own seed, so that a training that goes on later mixes what it would have mixed.
            layer.generator.state.assign(np.array([generator.integers(2**31), 0], dtype="uint32"))
            with keras.device("cpu"):  # the threads that prepare batches leave the accelerator alone
                mixed = layer({"images": images, "labels": labels}, training=True)
            images, labels = (keras.ops.convert_to_numpy(mixed[key]) for key in ("images", "labels"))
        return images, labels


OPTIONS = {"data_format": "channels_last", "dtype": "float32"}
