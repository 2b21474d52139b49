"""Faults of batch norm: one image, the wrong mode, momentum and epsilon."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from groupwise.diagnosis.examined import Examined
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.diagnosis.subject import Call
from groupwise.rewrite.drop_ins import NORMS

_SLOW_MOMENTUM = 0.5  # below, the moving statistics are nearly those of the last batch
_SMALL = 0.1  # of epsilon: variances below are mostly epsilon when they are divided by


def batches_of_one(examined: Examined) -> Iterator[Finding]:
    """Find batch norm that is trained with batches of one image."""
    norms = [call for call in examined.calls(*NORMS) if call.operation.trainable and call.training is not False]
    if examined.subject.is_random or not norms or _batch_size(examined) > 1:
        return
    lost = [call for call in norms if (seen := examined.seen.get(call.name)) is not None and seen.pixels == 1]
    yield Finding(
        "batch norm of one image",
        Weight.STOPS if lost else Weight.COSTS,
        f"batches have 1 image, and {len(norms)} batch norms normalise by them",
        "an image's own mean and variance are another thing than the moving ones that are used afterwards"
        + (f", and of a single number, as at {lost[0].name}, all that is left is 0" if lost else ""),
        "Take batches of 16 or more, or GroupNormalization; or freeze trained batch norms: layer.trainable = False",
        1,
        tuple(call.name for call in lost or norms),
    )


def _batch_size(examined: Examined) -> int:
    return max(len(keras.tree.flatten(images)[0]) for images, _ in examined.subject.batches)


def _is_fresh(layer: Any) -> bool:
    """Return whether a batch norm's moving statistics are still those that it started with."""
    mean = keras.ops.convert_to_numpy(layer.moving_mean)
    variance = keras.ops.convert_to_numpy(layer.moving_variance)
    return bool(np.all(mean == 0) and np.all(variance == 1))


def wrong_mode(examined: Examined) -> Iterator[Finding]:
    """Find batch norms that never normalise, and those that normalise by the batch while they predict."""
    idle = [call for call in examined.calls(*NORMS) if _never_normalises(call)]
    if idle:
        yield Finding(
            "batch norm that does not normalise",
            Weight.COSTS,
            f"{len(idle)} batch norms are frozen with a moving mean of 0 and a moving variance of 1",
            "a frozen batch norm uses its moving statistics, and these are the ones that it started with",
            "Leave them trainable (and call them without training=False) until they have seen the data, or load "
            "weights",
            len(idle),
            tuple(call.name for call in idle),
        )
    always = [call for call in examined.calls(*NORMS) if call.training is True]
    if always:
        yield Finding(
            "batch norm that always trains",
            Weight.COSTS,
            f"{len(always)} batch norms are called with training=True for good",
            "a prediction then depends on the other images of its batch, and the moving statistics are never used",
            "Call the layer without `training`: Keras says which mode it is",
            len(always),
            tuple(call.name for call in always),
        )


def _never_normalises(call: Call) -> bool:
    layer = call.operation
    is_frozen = not layer.trainable or call.training is False
    return is_frozen and _is_fresh(layer) and _learns_before(call)


def _learns_before(call: Call) -> bool:
    """Return whether what a batch norm reads comes from weights that are trained."""
    node = call.graph.before(call.node)
    return node is not None and bool(getattr(node.operation, "trainable_variables", ()))


def momentum(examined: Examined) -> Iterator[Finding]:
    """Find PyTorch's momentum in place of Keras's, which is 1 minus that."""
    found = [call for call in _using_batches(examined) if call.operation.momentum < _SLOW_MOMENTUM]
    if found:
        least = min(call.operation.momentum for call in found)
        yield Finding(
            "momentum of another convention",
            Weight.COSTS,
            f"{len(found)} batch norms keep {least:g} of their moving statistics at each step",
            "what is used after the training is nearly the last batch's alone; PyTorch's momentum is the share that is "
            "new, Keras's the share that stays",
            f"Take momentum={1 - least:g}",
            least,
            tuple(call.name for call in found),
        )


def _using_batches(examined: Examined) -> Iterator[Call]:
    return (call for call in examined.calls(*NORMS) if call.operation.trainable and call.training is not False)


def epsilon(examined: Examined) -> Iterator[Finding]:
    """Find batch norms that divide by epsilon rather than by the deviation: the variances are far smaller."""
    shares: dict[str, float] = {}
    for call in _using_batches(examined):
        variances = _variances_read(examined, call)
        is_chance = examined.subject.is_random and examined.seen[call.name].pixels == 1  # noise averaged away
        if variances is not None and not is_chance and np.median(variances) < _SMALL * call.operation.epsilon:
            shares[call.name] = float(np.median(variances) / call.operation.epsilon)
    if shares:
        worst = min(shares, key=lambda name: shares[name])
        yield Finding(
            "epsilon larger than the variances",
            Weight.COSTS,
            f"the variances that {len(shares)} batch norms divide by are down to {shares[worst]:.1g} of their epsilon",
            "they are divided by the root of epsilon instead, so that the outputs stay far smaller than 1",
            "Take a smaller epsilon, such as 1e-5, or initialise what they read by the true fan-in",
            shares[worst],
            tuple(shares),
        )


def _variances_read(examined: Examined, call: Call) -> Any:
    """Return the variances of the channels that a batch norm reads, where one layer's outputs are all that it reads."""
    node = call.graph.producer(call.node.input_tensors[0])
    names = {id(other.node): other.name for other in examined.subject.calls}
    seen = None if node is None else examined.seen.get(names.get(id(node), ""))
    return None if seen is None else seen.variances


RULES: tuple[Callable[[Examined], Iterator[Finding]], ...] = (
    batches_of_one,
    wrong_mode,
    momentum,
    epsilon,
)
