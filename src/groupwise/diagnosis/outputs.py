"""Faults of the head, the loss and the labels."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise.diagnosis.examined import Examined
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.diagnosis.observing import activation_name
from groupwise.diagnosis.subject import Subject
from groupwise.running.graph import Graph, is_graph

_CROSSENTROPIES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
)
_BY_NAME = {
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
}
_SUM = 1e-2  # how far a sum of probabilities may be from 1
_LEARNED = 2.0  # times chance, from where on a training accuracy was learned
_CHANCE = 1.2  # times chance, up to which a test accuracy is guessing


def loss_of(subject: Subject, outputs: Any) -> Any:
    """Return the loss that a model was compiled with, or the usual one of its outputs, symbolic or not, and labels."""
    compiled = subject.compiled.get("loss")
    if compiled is not None:
        return compiled
    labels = subject.labels
    if not hasattr(outputs, "shape") or len(outputs.shape) != 2 or outputs.shape[1] == 1:
        return "mse"
    takes_logits = last_activation(subject) != "softmax"
    if labels is None or _are_classes(labels):
        return _CROSSENTROPIES[1](from_logits=takes_logits)
    return _CROSSENTROPIES[0](from_logits=takes_logits) if _are_shares(labels) else "mse"


def _are_classes(labels: NDArray[Any]) -> bool:
    """Return whether labels are numbers of classes."""
    flat = labels.reshape(len(labels), -1)
    return flat.shape[1] == 1 and np.array_equal(flat, np.rint(flat)) and bool((flat >= 0).all())


def _are_shares(labels: NDArray[Any]) -> bool:
    """Return whether labels are shares of classes, as one-hot ones are."""
    is_table = labels.ndim == 2 and labels.shape[1] > 1
    return is_table and bool((labels >= 0).all()) and bool(np.abs(labels.sum(axis=1) - 1).max() < _SUM)


def classes_of(examined: Examined) -> NDArray[np.int64] | None:
    """Return the class of each image; None where there are no data, or the labels of this loss are no classes."""
    labels, (kind, _) = examined.subject.labels, _kind(examined.loss)
    if labels is None or examined.subject.is_random or kind is None:
        return None
    if kind is _CROSSENTROPIES[0]:
        return labels.argmax(axis=1) if _are_shares(labels) else None
    return labels.reshape(len(labels)).astype(np.int64) if _are_classes(labels) else None


def labels_for(loss: Any, outputs: Any) -> Any:
    """Return random targets of outputs for a loss, or for a dictionary or list of losses, where there are no labels."""
    if isinstance(loss, dict) and isinstance(outputs, dict):
        return {name: labels_for(loss.get(name), output) for name, output in outputs.items()}
    if isinstance(loss, list | tuple) and isinstance(outputs, list | tuple):
        return [labels_for(own, output) for own, output in zip(loss, outputs, strict=True)]
    generator, (kind, _) = np.random.default_rng(1), _kind(loss)
    if kind is _CROSSENTROPIES[1]:
        return generator.integers(0, outputs.shape[-1], outputs.shape[:-1])
    if kind is _CROSSENTROPIES[0]:
        return np.eye(outputs.shape[-1], dtype="float32")[generator.integers(0, outputs.shape[-1], outputs.shape[:-1])]
    if kind is _CROSSENTROPIES[2]:
        return generator.integers(0, 2, outputs.shape).astype("float32")
    return keras.tree.map_structure(lambda array: generator.normal(size=array.shape).astype("float32"), outputs)


def last_activation(subject: Subject) -> str | None:
    """Return the name of the activation that a model's one output has passed through last, or None."""
    if not subject.calls:
        return None
    graph = Graph(subject.model)
    return _activation_behind(graph, graph.outputs[0])


def _activation_behind(graph: Graph, tensor: Any) -> str | None:
    """Return the name of the activation that a tensor has passed through last, in a model within as well."""
    node = graph.producer(tensor)
    if node is None:
        return None
    if is_graph(node.operation):
        within = Graph(node.operation)
        return _activation_behind(within, within.outputs[0])
    name = activation_name(node.operation)
    passes_on = (
        name in (None, "linear") and not getattr(node.operation, "weights", None) and len(node.input_tensors) == 1
    )
    return _activation_behind(graph, node.input_tensors[0]) if passes_on else name


def _kind(loss: Any) -> tuple[type | None, bool]:
    """Return which crossentropy a loss is, and whether it takes logits."""
    if isinstance(loss, str):
        return _BY_NAME.get(loss), False
    if isinstance(loss, _CROSSENTROPIES):
        return type(loss), bool(loss.from_logits)
    name = getattr(loss, "__name__", "")
    return (_BY_NAME.get(name), False) if callable(loss) else (None, False)


def softmax_twice(examined: Examined) -> Iterator[Finding]:
    """Find a softmax of a softmax: in the model, or in a loss that takes logits."""
    kind, takes_logits = _kind(examined.loss)
    last = last_activation(examined.subject)
    doubled = _softmax_of_softmax(examined)
    if doubled:
        yield Finding(
            "softmax twice",
            Weight.COSTS,
            f"a softmax reads what a softmax returned: of {_classes(examined)} classes none can get more than "
            f"{_most_of_two(_classes(examined)):.1%}",
            "its inputs lie between 0 and 1, so that its outputs are nearly alike, and the gradient is small",
            "Leave one of them out",
            _most_of_two(_classes(examined)),
            doubled,
        )
    ends_in = {"softmax": _CROSSENTROPIES[:2], "sigmoid": _CROSSENTROPIES[2:]}.get(last or "", ())
    if examined.subject.compiled and takes_logits and kind in ends_in:
        yield Finding(
            "softmax twice" if last == "softmax" else "sigmoid twice",
            Weight.COSTS,
            f"the model ends in a {last}, and the loss has from_logits=True",
            f"the loss takes the {last} again: no class can get far from the others, and the gradient is small",
            f"Take from_logits=False, or leave the model's {last} out",
            1,
        )


def _softmax_of_softmax(examined: Examined) -> tuple[str, ...]:
    return tuple(
        call.name
        for call in examined.subject.calls
        if activation_name(call.operation) == "softmax"
        and not getattr(call.operation, "weights", None)
        and _activation_behind(call.graph, call.node.input_tensors[0]) == "softmax"
    )


def _classes(examined: Examined) -> int:
    shape = getattr(examined.outputs, "shape", (1, 1))
    return int(shape[-1])


def _most_of_two(classes: int) -> float:
    return float(np.e / (np.e + classes - 1))


def logits_as_probabilities(examined: Examined) -> Iterator[Finding]:
    """Find a loss that takes probabilities where the model returns logits."""
    kind, takes_logits = _kind(examined.loss)
    outputs = examined.outputs
    if not examined.subject.compiled or kind is None or takes_logits or not isinstance(outputs, np.ndarray):
        return
    sums = outputs.sum(axis=-1)
    is_binary = kind is _CROSSENTROPIES[2]
    in_range = bool((outputs >= 0).all() and (outputs <= 1 + _SUM).all())
    if last_activation(examined.subject) == "softmax" or (in_range and (is_binary or np.abs(sums - 1).max() < _SUM)):
        return
    low, high = float(outputs.min()), float(outputs.max())
    end = "sigmoid" if is_binary else "softmax"
    yield Finding(
        "logits taken for probabilities",
        Weight.STOPS,
        f"outputs reach from {low:.3g} to {high:.3g} and sum to {float(sums.mean()):.3g} on average, and the loss has "
        "from_logits=False",
        "it takes them for probabilities and cuts off what lies outside 0 to 1, where no gradient is left",
        f"Take keras.losses.{kind.__name__}(from_logits=True), or end the model in a {end}",
        float(sums.mean()),
    )


def labels(examined: Examined) -> Iterator[Finding]:
    """Find labels that do not fit the head: shifted by one, of one class, or of another number of classes."""
    classes, count = classes_of(examined), _classes(examined)
    whole = examined.subject.labels
    if classes is None or whole is None or not isinstance(examined.outputs, np.ndarray) or examined.outputs.ndim != 2:
        return
    known = len(examined.subject.class_names or ())
    one_hot = whole.shape[1] if whole.ndim == 2 and whole.shape[1] > 1 else None
    low, high = int(classes.min()), int(classes.max())
    if count > 1 and one_hot is None and low >= 1 and high == count:
        yield Finding(
            "labels shifted by one",
            Weight.STOPS,
            f"labels reach from {low} to {high}, and the head has {count} outputs, 0 to {count - 1}",
            "the last class has no output, and the first output no class",
            "Subtract 1 from the labels",
            high,
        )
    elif _other_head(count, one_hot or known, high):
        wanted = one_hot or known or high + 1
        yield Finding(
            "head of another number of classes",
            Weight.STOPS if wanted > count else Weight.COSTS,
            f"the head has {count} outputs, and the labels {wanted} classes",
            "some classes can never be said" if wanted > count else "some outputs belong to no class",
            f"Give the last layer {wanted} units",
            wanted,
        )
    if len(classes) > 3 and low == high:
        yield Finding(
            "one class alone",
            Weight.STOPS,
            f"all {len(classes)} labels that were looked at are {low}",
            "there is nothing to tell apart: the data are sorted by class and not shuffled, or read wrongly",
            "Shuffle the images before they are cut into batches, and look at the labels",
            low,
        )


def _other_head(outputs: int, classes: int | None, high: int) -> bool:
    if outputs == 1:
        return high > 1
    return bool(classes and classes != outputs) or high >= outputs


def shuffled_labels(examined: Examined) -> Iterator[Finding]:
    """Find a training that learns its images by heart while its test stays at chance: labels that belong to others."""
    history = {name: list(values) for name, values in examined.subject.history.items()}
    train, test = (_accuracy(history, prefix) for prefix in ("", "val_"))
    chance = 1 / max(_classes(examined), 2)
    if not train or not test:
        return
    if train[-1] > max(_LEARNED * chance, train[0]) and max(test) <= _CHANCE * chance:
        yield Finding(
            "labels of other images",
            Weight.STOPS,
            f"the training accuracy rose to {train[-1]:.1%}, and the test accuracy never passed {max(test):.1%}",
            f"{chance:.1%} is what guessing reaches: the labels have nothing to do with the images, since one of both "
            "was shuffled or sorted without the other",
            "Look at some images with their labels, and shuffle both by the same order",
            max(test),
        )


def _accuracy(history: dict[str, list[float]], prefix: str) -> list[float]:
    names = [name for name in history if name.startswith(prefix) and "acc" in name and ("val_" in name) == bool(prefix)]
    return history[names[0]] if names else []


def probe_labels(examined: Examined) -> Iterator[Finding]:
    """Say where the pixels tell nothing of the labels: each image's nearest neighbours are of any class."""
    classes, images = classes_of(examined), examined.subject.images
    if classes is None or not isinstance(images, np.ndarray) or images.ndim != 4:
        return
    hits, chance = _neighbours(images, classes)
    spread = np.sqrt(chance * (1 - chance) / len(classes))
    if len(classes) >= 100 and len(set(classes.tolist())) <= len(classes) / 10 and hits < chance + 2 * spread:
        yield Finding(
            "labels that pixels do not tell",
            Weight.LOOK,
            f"of {len(classes)} images {hits:.1%} have the class of their nearest neighbour, and guessing reaches "
            f"{chance:.1%}",
            "in most data similar images are of the same class more often: the labels may belong to other images",
            "Look at some images with their labels",
            hits,
        )


def _neighbours(images: NDArray[Any], classes: NDArray[np.int64]) -> tuple[float, float]:
    """Return how many images have the class of the most similar other one, and how many would by chance."""
    height, width = images.shape[1:3]
    rows, columns = max(height // 8, 1), max(width // 8, 1)
    small = images[:, ::rows, ::columns].reshape(len(images), -1).astype(np.float64)
    small = (small - small.mean(axis=1, keepdims=True)) / (small.std(axis=1, keepdims=True) + 1e-9)
    alike = small @ small.T
    np.fill_diagonal(alike, -np.inf)
    shares = np.bincount(classes - classes.min()) / len(classes)
    return float((classes[alike.argmax(axis=1)] == classes).mean()), float((shares**2).sum())


RULES = (softmax_twice, logits_as_probabilities, labels, shuffled_labels, probe_labels)
