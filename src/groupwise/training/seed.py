"""The seeds of everything random."""

import keras
import numpy as np
from keras import ops

from groupwise.frameworks import FRAMEWORKS
from groupwise.keras_private import without_tensorflow


def set_seed(seed: int) -> None:
    """Do what `keras.utils.set_random_seed` does, but do not import TensorFlow for it where it is not in use."""
    with without_tensorflow():
        keras.utils.set_random_seed(seed)


def seed_epoch(model: keras.Model, seed: int, epoch: int, process: int = 0, processes: int = 1) -> None:
    """Let a model's random layers, such as dropout, draw what belongs to an epoch, whatever was drawn before.

    Keras does not save their states, so that a resumed training could not go on from them. Where each process draws for
    its own images, on PyTorch, it draws its own numbers; on JAX all draw those of the whole batch.
    """
    if FRAMEWORKS[keras.backend.backend()].has_one_generator:
        epoch = epoch * processes + process
        # Elsewhere this does nothing, and takes TensorFlow 0.3 s.
        set_seed((seed + 1 + epoch) % 2**32)
    for variable in model.variables:
        if variable.name == "seed_generator_state":
            first, _ = np.asarray(ops.convert_to_numpy(variable))
            # The second number counts the draws; no epoch draws a million times.
            variable.assign(np.array([first, epoch * 2**20 % 2**31]).astype(first.dtype))
