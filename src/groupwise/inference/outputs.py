"""A model's outputs for a few images."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


def predict_logits(model: keras.Model, images: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
    """Return the outputs of a model that has one, for at most batch_size images, as `predict_outputs` does."""
    return predict_outputs(model, images, batch_size)[0]


def predict_outputs(model: keras.Model, images: NDArray[np.float32], batch_size: int) -> list[NDArray[np.float32]]:
    """Return all of a model's outputs for at most batch_size images, filled up with zeros on the way.

    JAX and TensorFlow compile anew for every new shape, which takes longer than the images that are made up.

    Raises:
        ValueError: there are more images.
    """
    missing = batch_size - len(images)
    if missing < 0:
        raise ValueError(f"batch_size={batch_size}: there are {len(images)} images; it must be as many at least")
    padded = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images
    outputs: Any = model.predict_on_batch(padded)
    several = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [np.asarray(output, np.float32)[: len(images)] for output in several]
