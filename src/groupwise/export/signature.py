"""What a model takes and gives, as its file does: shapes, types and names, and images to compare on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise import keras_private
from groupwise.errors import UserError, argument
from groupwise.export.precision import file_type

# Two of the size that is traced: the third shows that the file's batch is of any size.
DRAWN = 3
AT_ONCE = 2
# (height, width) that a network of any size is compared on, those of them that it can take itself; the first is traced.
TRIED_SIZES = ((64, 64), (75, 101), (96, 160))


def say_size() -> str:
    """Return what to do where a network takes images of any size, and one is needed."""
    return f"say of which one, such as {argument('image_size', (224, 224))}"


@dataclass(frozen=True)
class Signature:
    """One input, a batch of images, and one output.

    Attributes:
        shape: (batch, height, width, channels), or channels first; None for what may be of any size.
        dtype: of the file's input.
        name: of the input: its key where the model takes a dict.
        output_dtype: of the file's output.
        output_name: its key where the model gives a dict, else the layer's name.
        axes: which two of the shape are height and width.
    """

    shape: tuple[int | None, ...]
    dtype: str
    name: str
    output_dtype: str
    output_name: str
    axes: tuple[int, int]

    @property
    def any_size(self) -> bool:
        """Whether images of more than one size may be given."""
        return None in self.shape[1:]

    def sized(self, size: tuple[int, int]) -> tuple[int | None, ...]:
        """Return the shape with a height and width where it has none."""
        given = dict(zip(self.axes, size, strict=True))
        return tuple(given.get(axis) if own is None else own for axis, own in enumerate(self.shape))

    def noise(self, size: tuple[int, int]) -> NDArray[Any]:
        """Return random images of the input's type, over the whole range of an integer type of 8 or 16 bits."""
        shape: list[Any] = list(self.sized(size))
        shape[0] = shape[0] or DRAWN
        generator, dtype = np.random.default_rng(0), np.dtype(self.dtype)
        if dtype.kind == "f":
            return generator.normal(size=shape).astype(dtype)
        if dtype.kind == "b":
            return generator.random(shape) < 0.5
        ends = np.iinfo(dtype) if dtype.itemsize < 4 else np.iinfo(np.uint8)
        return generator.integers(ends.min, ends.max, shape, dtype, endpoint=True)

    def batches(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """Return images in batches of the shape's size, else of a few."""
        step = self.shape[0] or AT_ONCE
        return [images[start : start + step] for start in range(0, len(images), step)]


def signature_of(model: keras.Model, image_size: tuple[int, int] | None) -> Signature:
    """Return what the file of a model takes and gives.

    Args:
        model: functional or sequential, from one batch of images to one output, each also alone in a dict or list.
        image_size: (height, width), where the model's own may be any.

    Raises:
        UserError: the model has more inputs or outputs or none that are known, or another image size of its own.
    """
    inputs, outputs = list(getattr(model, "inputs", None) or ()), list(getattr(model, "outputs", None) or ())
    if not inputs or not outputs:
        raise UserError(
            f"model {model.name!r} does not say which shapes it takes: begin it with keras.Input, "
            "or wrap it: keras.Model(inputs, model(inputs))"
        )
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        raise UserError(
            f"only networks from one batch of images to one output are exported: this one takes {shapes} and gives "
            f"{len(outputs)}; export a model of a part, keras.Model(images, output)"
        )
    axes = _image_axes(model)
    shape: list[int | None] = list(inputs[0].shape)
    if image_size is not None:
        own = tuple(shape[axis] for axis in axes)
        for axis, size in zip(axes, image_size, strict=True):
            if shape[axis] not in (None, size):
                raise UserError(f"{argument('image_size', image_size)}: the network's own is {own[0]}x{own[1]}")
            shape[axis] = size
    if any(shape[axis] is None for axis in range(1, 4) if axis not in axes):
        raise UserError(
            f"the network takes images of any number of channels: {tuple(shape)}; give its input that number"
        )
    given, made = structures(model)
    return Signature(
        tuple(shape),
        file_type(inputs[0].dtype),
        _key(given) or inputs[0].name,
        file_type(outputs[0].dtype),
        _key(made) or _last_layer(model),
        axes,
    )


def structures(model: keras.Model) -> tuple[Any, Any]:
    """Return what a functional or sequential model takes and gives: a tensor, or a dict or list of one."""
    graph = keras_private.graph_of(model)
    one = model.inputs[0]
    return keras_private.structures(graph) if keras_private.has_calls(graph) else (one, one)


def run_model(model: keras.Model, batches: Sequence[NDArray[Any]], dtype: str) -> NDArray[Any]:
    """Return a model's one output for batches of images, one after the other, in the file's type."""
    structure = structures(model)[0]
    parts = []
    for batch in batches:
        outputs = model(keras.tree.pack_sequence_as(structure, [batch]), training=False)
        parts.append(keras.ops.convert_to_numpy(keras.tree.flatten(outputs)[0]).astype(dtype))
    return np.concatenate(parts)


def _key(structure: Any) -> str | None:
    return str(next(iter(structure))) if isinstance(structure, dict) else None


def _last_layer(model: keras.Model) -> str:
    names = getattr(model, "output_names", None)
    return str(names[0] if names else model.layers[-1].name)


def _image_axes(model: keras.Model) -> tuple[int, int]:
    formats = (getattr(layer, "data_format", None) for layer in keras_private.layers_within(model))
    named = next(filter(None, formats), keras.config.image_data_format())
    return (2, 3) if named == "channels_first" else (1, 2)
