"""What is examined: a model's calls and layers by their names, how it was compiled, and the images it is to learn."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise import keras_private
from groupwise.data import Preprocessing
from groupwise.diagnosis.applications import Application, application_in
from groupwise.errors import UserError
from groupwise.rewrite.drop_ins import NORMS
from groupwise.running.graph import Graph, Node, is_graph

BATCHES = 4  # of the data that are looked at
IMAGES = 32  # a batch, of arrays
RANDOM_IMAGES = 8
ANY_SIDE = 64  # an image's, where the model leaves it open
LARGE = 0.1  # a factor below which a `Rescaling` is for pixels of 0 to 255

NORMALISING = (
    *NORMS,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.RMSNormalization,
    keras.layers.SpectralNormalization,
)

Batch = tuple[Any, Any]
"""Images and labels; labels are None where there are none."""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an operation in a graph, by the name of that operation within the whole model.

    `training` is the mode that the graph says for good, at any depth, or None.
    """

    name: str
    node: Node
    graph: Graph
    training: bool | None = None

    @property
    def operation(self) -> Any:
        """The layer, or an operation without weights."""
        return self.node.operation


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and its data.

    Attributes:
        model: built.
        batches: pairs of images and labels, arrays.
        is_random: whether the images are random numbers, since there are no data.
        learning_rate: that of the training; None where it is not known.
        preprocessing: what the model's metadata say of its images, if they do.
        class_names: of the data, if known.
        history: of a training: values by epoch, by name.
    """

    model: keras.Model
    batches: Sequence[Batch]
    is_random: bool
    learning_rate: float | None = None
    preprocessing: Preprocessing | None = None
    class_names: Sequence[str] | None = None
    history: dict[str, Sequence[float]] = field(default_factory=dict)

    @cached_property
    def calls(self) -> list[Call]:
        """The calls of a functional or sequential model and of those within it, in order; none of other models."""
        return list(_calls(self.model, "")) if is_graph(self.model) else []

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The operations that compute, by name: layers that are not made of layers, and operations without weights."""
        if not self.calls:
            return _named(_leaves(self.model, ""))
        return _named(leaf for call in self.calls for leaf in _leaves(call.operation, call.name.rpartition("/")[0]))

    @cached_property
    def names(self) -> dict[int, str]:
        """The names of the operations by their ids."""
        return {id(part): name for name, part in self.parts.items()}

    @cached_property
    def application(self) -> Application | None:
        """The network of Keras Applications that the model is or holds, with trained weights."""
        return application_in(self.model)

    @property
    def images(self) -> Any:
        """The images of all batches that are of one size, one after the other."""
        return keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays), *(images for images, _ in self._alike())
        )

    @property
    def images_differ(self) -> bool:
        """Whether the images of the first batch are not all the same."""
        images = keras.tree.flatten(self.batches[0][0])
        return any(len(array) > 1 and bool(np.ptp(array, axis=0).any()) for array in images)

    @property
    def labels(self) -> NDArray[np.generic] | None:
        """The labels of these images, where there is one array of them."""
        labels = [labels for _, labels in self._alike()]
        return np.concatenate(labels) if all(isinstance(some, np.ndarray) for some in labels) else None

    def _alike(self) -> list[Batch]:
        first = _shapes(self.batches[0])
        return [batch for batch in self.batches if _shapes(batch) == first]

    @cached_property
    def compiled(self) -> dict[str, Any]:
        """What the model was compiled with; nothing where it was not."""
        return keras_private.compile_arguments(self.model) if self.model.compiled else {}

    @property
    def optimizer(self) -> Any:
        """The optimizer that the model was compiled with, or None."""
        return self.model.optimizer if self.model.compiled else None

    def is_head(self, call: Call) -> bool:
        """Return whether what a call returns becomes an output of the model, and no weights read it before."""
        waiting, seen = list(call.node.outputs), set[int]()
        while waiting:
            tensor = waiting.pop()
            if call.graph.is_result(tensor):
                return True
            for reader in call.graph.readers(tensor):
                if id(reader) not in seen and not getattr(reader.operation, "weights", None):
                    seen.add(id(reader))
                    waiting += reader.outputs
        return False

    def is_normalised(self, call: Call, through: int = 0) -> bool:
        """Return whether what a call returns is normalised before weights read it, on each way onwards.

        Args:
            through: how many layers with weights may come before.
        """
        waiting = [(tensor, through) for tensor in call.node.outputs]
        seen: set[int] = set()
        while waiting:
            tensor, left = waiting.pop()
            if call.graph.is_result(tensor):
                return False
            for reader in call.graph.readers(tensor):
                if id(reader) in seen or isinstance(reader.operation, NORMALISING):
                    continue
                seen.add(id(reader))
                reads_weights = is_graph(reader.operation) or bool(getattr(reader.operation, "weights", None))
                if reads_weights and not left:
                    return False
                waiting += [(output, left - reads_weights) for output in reader.outputs]
        return True


def _calls(model: keras.Model, outer: str, training: bool | None = None) -> Iterator[Call]:
    graph = Graph(model)
    for node in graph.nodes:
        name, given = f"{outer}{node.operation.name}", node.arguments.kwargs.get("training")
        mode = training if given is None else bool(given)
        if is_graph(node.operation):
            yield from _calls(node.operation, f"{name}/", mode)
        else:
            yield Call(name, node, graph, mode)


def _named(parts: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return parts by name; of several of one name, which blocks of somebody's own may have, by numbers behind it."""
    found: dict[str, Any] = {}
    for name, part in parts:
        if any(part is other for other in found.values()):
            continue
        count = sum(other == name or other.startswith(f"{name} (") for other in found)
        found[f"{name} ({count + 1})" if count else name] = part
    return found


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [getattr(array, "shape", ())[1:] for array in keras.tree.flatten(batch)]


def _leaves(operation: Any, outer: str) -> Iterator[tuple[str, Any]]:
    """Yield an operation, or the layers within it that are not made of layers, by name."""
    within = keras_private.layers_within(operation) if isinstance(operation, keras.Layer) else [operation]
    for part in within:
        is_leaf = not isinstance(part, keras.Layer) or not keras_private.layers_within(part, include_self=False)
        if is_leaf and not isinstance(part, keras.layers.InputLayer):
            names = [outer] * bool(outer) + [operation.name] * (part is not operation) + [part.name]
            yield "/".join(names), part


def batches_of(model: keras.Model, data: Any) -> tuple[list[Batch], bool]:
    """Return some batches of what a user gave, and whether they are random numbers, since that was nothing.

    Args:
        data: None, a pair of arrays (images, labels), or anything that gives such pairs: a `PyDataset`, a generator,
            a `tf.data.Dataset`, a `DataLoader`.

    Raises:
        UserError: the data give no batch, or no pairs.
    """
    if data is None:
        generator = np.random.default_rng(0)
        scale = scale_of(model)
        return [(keras.tree.map_structure(lambda x: _random(x, scale, generator), _inputs(model)), None)], True
    if isinstance(data, keras.utils.PyDataset):
        found = [data[place] for place in range(min(BATCHES, len(data)))]
    elif isinstance(data, tuple) and len(data) in (2, 3) and _are_whole(data):
        whole = keras.tree.map_structure(_array, data)
        count = len(keras.tree.flatten(whole)[0])
        found = [
            keras.tree.map_structure(lambda array, at=at: array[at : at + IMAGES], whole)
            for at in range(0, min(count, IMAGES * BATCHES), IMAGES)
        ]
    else:
        found = [batch for batch, _ in zip(_iterable(data), range(BATCHES), strict=False)]
    if not found or any(not isinstance(batch, tuple | list) or len(batch) < 2 for batch in found):
        raise UserError(
            f"batches={type(data).__name__}: must give pairs of images and labels; pass (images, labels), or what "
            "`fit` is given"
        )
    return [
        (keras.tree.map_structure(_array, batch[0]), keras.tree.map_structure(_array, batch[1])) for batch in found
    ], False


def _are_whole(data: Any) -> bool:
    """Return whether all that is given are arrays of as many images: all data, no batches."""
    leaves = keras.tree.flatten(data)
    return all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves) and len({len(x) for x in leaves}) == 1


def _iterable(data: Any) -> Iterable[Any]:
    try:
        return iter(data)
    except TypeError:
        raise UserError(f"batches={data!r}: must give pairs of images and labels, one after the other") from None


def _array(value: Any) -> NDArray[np.generic]:
    found: NDArray[np.generic] = np.asarray(
        value if isinstance(value, np.ndarray) else keras.ops.convert_to_numpy(value)
    )
    return found


def _inputs(model: keras.Model) -> Any:
    """Return the structure of a model's inputs. Raises UserError where they are unknown."""
    if is_graph(model):
        return keras_private.structures(keras_private.graph_of(model))[0]
    raise UserError(
        f"model {model.name!r}: computes in a method of its own, or is not built, so that the shape of its images is "
        "unknown; give it some: diagnose(model, (images, labels))"
    )


def _random(tensor: Any, scale: float, generator: np.random.Generator) -> NDArray[np.generic]:
    """Return random numbers of a tensor's shape, as large as those of images that were normalised, times `scale`."""
    batch, *sides = tensor.shape
    shape = [batch or RANDOM_IMAGES, *(side or ANY_SIDE for side in sides)]
    if "int" in tensor.dtype:
        return generator.integers(0, 256 if len(shape) == 4 else 2, shape).astype(tensor.dtype)
    return (scale * generator.normal(size=shape)).astype(tensor.dtype)


def scale_of(model: keras.Model) -> float:
    """Return how many times larger than about 1 a model expects its pixels to be, and makes them itself."""
    if not is_graph(model):
        return 1.0
    scale = 1.0
    for call in _calls(model, ""):
        layer = call.operation
        if isinstance(layer, keras.layers.Rescaling):
            scale *= float(np.min(layer.scale))
        elif getattr(layer, "weights", None) and not isinstance(layer, keras.layers.Normalization):
            break
    return 1 / scale if 0 < scale < LARGE else 1.0
