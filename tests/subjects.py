"""A model that is looked at: the batch it is given, and its layers by place."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

Facts = dict[str, Any]
"""From the place where something was seen to what it was: an array, or anything that can be compared."""
VOCABULARY = np.array(["ant", "bee", "cat", "unknown"])


@dataclass(frozen=True)
class Data:
    """A batch for a model: inputs in its structure, and targets in that of its outputs."""

    inputs: Any
    targets: Any

    @staticmethod
    def of(model: keras.Model) -> "Data":
        """Return random inputs and targets."""
        random = np.random.default_rng(5)
        inputs = keras.tree.map_structure(partial(array_like, random), graph_of(model).input)
        outputs = model(inputs, training=False)
        targets = keras.tree.map_structure(lambda y: random.uniform(0, 1, y.shape).astype("float32"), outputs)
        return Data(inputs, targets)


def graph_of(model: keras.Model) -> Any:
    """Return what knows the structure of a functional or sequential model's inputs and outputs."""
    return model._functional if isinstance(model, keras.Sequential) else model


def array_like(random: np.random.Generator, tensor: Any) -> np.ndarray:
    """Return random values for a symbolic tensor, three of a batch."""
    shape = (3, *(size or usual for size, usual in zip(tensor.shape[1:], (8, 6, 4), strict=False)))
    if tensor.dtype == "string":
        return random.choice(VOCABULARY, shape)
    if "int" in tensor.dtype:
        return random.integers(0, 10, shape).astype(tensor.dtype)
    return random.normal(size=shape).astype("float32" if "16" in tensor.dtype else tensor.dtype)


@dataclass
class Subject:
    """A model to be observed, and at which places: those of the model that it is compared with.

    Attributes:
        places: the layer at each place; None where there is none any more. A place is the layers' names from the model
            inward; within a layer that is no model, a layer's number.
        graphs: the models whose calls can be followed, by place; the model itself at "".
    """

    model: keras.Model
    data: Data
    places: dict[str, Any]
    graphs: dict[str, keras.Model]

    @cached_property
    def inference(self) -> tuple[Any, float]:
        """What the model returns, and the sum of its losses then."""
        returned = self.model(self.data.inputs, training=False)
        return returned, sum((float(loss) for loss in self.model.losses), 0.0)

    @cached_property
    def reloaded(self) -> keras.Model:
        """What is read from the model's file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            self.model.save(path)
            return keras.saving.load_model(path)

    @staticmethod
    def of(model: keras.Model, data: Data, like: "Subject | None" = None) -> "Subject":
        if like is None:
            places = dict(_places(model))
            graphs = {place: layer for place, layer in places.items() if isinstance(layer, keras.Model)}
            return Subject(model, data, places, {"": model, **graphs})
        found = {place: _found(model, place) for place in like.places}
        graphs = {place: found.get(place) for place in like.graphs if isinstance(found.get(place), keras.Model)}
        return Subject(model, data, found, {"": model, **graphs})

    def layers(self) -> Iterator[tuple[str, Any]]:
        """Yield each place, and the layer there."""
        yield from ((place, layer) for place, layer in self.places.items() if layer is not None)


def _places(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    is_model = isinstance(layer, keras.Model)
    inner = layer.layers if is_model else layer._layers
    for number, each in enumerate(inner):
        place = f"{prefix}{each.name if is_model else number}"
        yield place, each
        yield from _places(each, f"{place}/")


def _found(model: Any, place: str) -> Any:
    layer = model
    for part in place.split("/"):
        if isinstance(layer, keras.Model):
            try:
                layer = layer.get_layer(part)
            except ValueError:
                return None
        elif part.isdecimal() and int(part) < len(layer._layers):
            layer = layer._layers[int(part)]
        else:
            return None
    return layer


def numpy_of(value: Any) -> np.ndarray:
    """Return a copy of a tensor or variable as an array."""
    return np.array(keras.ops.convert_to_numpy(value))  # a copy: PyTorch shares its memory
