"""Weights that a stock Keras model saved, read into its twin made of our layers."""

from pathlib import Path
from typing import Any

import h5py
import keras

from groupwise.layers import stock_twin
from groupwise.weights.hdf5 import check_hdf5


def load_keras_weights(model: keras.Model, path: Any) -> None:
    """Load a `.weights.h5` that a stock Keras model wrote into its twin made of our layers.

    Keras keys that file by class name, so a Conv2D's weights do not find a GroupedConv2D. They are loaded into a
    copy of `model` made of stock layers, and handed over.

    Args:
        model: functional or sequential, of the architecture that wrote the file.
        path: the `.weights.h5` file.

    Raises:
        ValueError: where the file's weights do not fit the model, or lie in other files.
    """
    with h5py.File(path, "r") as file:
        check_hdf5(Path(path), file)
    twin = keras.models.clone_model(model, clone_function=stock_twin, recursive=True)
    twin.load_weights(path)
    model.set_weights(twin.get_weights())
