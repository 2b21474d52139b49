"""Weights that a stock Keras model saved, read into its twin made of our layers."""

from pathlib import Path

import h5py
import keras

from groupwise.errors import UserError
from groupwise.layers import stock_twin
from groupwise.weights.hdf5 import check_hdf5
from groupwise.writing import expanded


def load_keras_weights(model: keras.Model, path: str | Path) -> None:
    """Load a `.weights.h5` that a stock Keras model wrote into its twin made of our layers.

    Keras keys that file by class name, so a Conv2D's weights do not find a GroupedConv2D. They are loaded into a
    copy of `model` made of stock layers, and handed over.

    Args:
        model: functional or sequential, of the architecture that wrote the file.
        path: the `.weights.h5` file.

    Raises:
        ValueError: where there is no such file, it is damaged, or its weights do not fit the model, or lie in other
            files.
    """
    path = expanded(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: name a .weights.h5 file")
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no HDF5 file, or a damaged one")
    with h5py.File(path, "r") as file:
        check_hdf5(path, file)
    twin = keras.models.clone_model(model, clone_function=stock_twin, recursive=True)
    twin.load_weights(path)
    model.set_weights(twin.get_weights())
