"""Faults that the numbers show: dead and saturated units, signals and gradients that vanish or explode."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from groupwise.diagnosis.examined import Examined
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.diagnosis.observing import RECTIFIERS, Seen, activation_name, relative, variables_by_part

_DEAD, _NEARLY_ALL = 0.6, 0.95  # of a layer's units
_ENOUGH = 128  # numbers a unit, from where on it is not 0 by chance
_SATURATED = 0.6  # of its numbers
_VANISHED, _EXPLODED = 1e-4, 1e4  # times the first layer's signal
_STEEP = 1e6  # a gradient, as a share of the weights; of a fresh ResNet-101 it is 3e3
_BEGINNING = 3  # layers that are all to be flat: single ones, such as an attention's queries, may well be
_NEARLY_APART = 1e3
_APART = 1e4  # times that one layer's gradient is another's


def dead_units(examined: Examined) -> Iterator[Finding]:
    """Find layers most of whose rectified units are 0 for every image."""
    dead = {
        name: seen.dead
        for name, seen in examined.seen.items()
        if activation_name(examined.subject.parts[name]) in RECTIFIERS and seen.dead > _most_dead(seen)
    }
    if dead:
        yield Finding(
            "dead units",
            Weight.STOPS if max(dead.values()) > _NEARLY_ALL else Weight.COSTS,
            f"up to {max(dead.values()):.0%} of the units of {len(dead)} layers are 0 for every image",
            "a ReLU that is always 0 has no gradient, and does not come back: a bias is far too low, or a step was too "
            "large",
            "Begin anew with a smaller learning rate, biases of 0 and kernel_initializer='he_normal', or put a "
            "BatchNormalization before the activation",
            max(dead.values()),
            tuple(dead),
        )


def _most_dead(seen: Seen) -> float:
    """Return which share of dead units is no fault: of few numbers a unit, as in a gate, many are 0 by chance."""
    return _DEAD if seen.images * seen.pixels >= _ENOUGH else _NEARLY_ALL


def saturated_units(examined: Examined) -> Iterator[Finding]:
    """Find sigmoids and tanhs most of whose outputs are at an end."""
    heads = {call.name for call in examined.subject.calls if examined.subject.is_head(call)}
    found = {
        name: seen.saturated
        for name, seen in examined.seen.items()
        if seen.saturated is not None and seen.saturated > _SATURATED and name not in heads
    }
    if found:
        yield Finding(
            "saturated units",
            Weight.COSTS,
            f"up to {max(found.values()):.0%} of the outputs of {len(found)} layers lie at an end of a sigmoid or tanh",
            "there the gradient is nearly 0: what they read is too large",
            "Normalise what they read, take smaller initial weights, or ReLU instead",
            max(found.values()),
            tuple(found),
        )


def signal(examined: Examined) -> Iterator[Finding]:
    """Find where the differences between images vanish or explode on their way through the layers."""
    not_finite = [name for name, seen in examined.seen.items() if not seen.finite]
    if not_finite:
        yield Finding(
            "numbers that are not finite",
            Weight.STOPS,
            f"the outputs of {len(not_finite)} layers are not finite",
            "the first of them overflows, or divides by 0, or the images or weights hold NaN",
            "Look at the images (numpy.isfinite), then at the weights of the first of these layers",
            len(not_finite),
            tuple(not_finite),
        )
        return
    # Probabilities of many classes are small numbers, and differ by smaller ones.
    weighted = [
        name
        for name in examined.seen
        if _has_numbers(examined.subject.parts[name]) and activation_name(examined.subject.parts[name]) != "softmax"
    ]
    if len(weighted) < 3:
        return
    first, others = examined.seen[weighted[0]].signal, weighted[1:]
    if not first:
        return
    changes = {name: examined.seen[name].signal / first for name in others}
    lost = [name for name, change in changes.items() if change < _VANISHED]
    grown = [name for name, change in changes.items() if change > _EXPLODED]
    # What vanishes once stays so: a gate or an output of its own that hardly differs is none of these.
    if lost and lost[-1] == others[-1] and examined.subject.images_differ:
        yield _vanished(changes, lost)
    if grown:
        yield _exploded(changes, grown)


def _has_numbers(part: Any) -> bool:
    """Return whether a part has weights, and none of its kernels or scales starts as zeros, as some heads' do."""
    kernels = [weight for weight in getattr(part, "weights", ()) if weight.ndim > 1 or weight.name == "gamma"]
    is_zero = any(not np.any(keras.ops.convert_to_numpy(kernel)) for kernel in kernels)
    return bool(getattr(part, "weights", None)) and not is_zero


def _vanished(changes: dict[str, float], lost: list[str]) -> Finding:
    return Finding(
        "vanishing signal",
        Weight.STOPS,
        f"images differ {changes[lost[-1]]:.1g} times as much behind {lost[-1]} as behind the first layer",
        f"from {lost[0]} on the layers return nearly the same for every image, so that the output depends on biases "
        "alone",
        "Put a BatchNormalization behind each convolution, or initialise by the true fan-in ('he_normal' before ReLU; "
        "groupwise.layers.DepthwiseHeNormal for depthwise kernels)",
        changes[lost[-1]],
        tuple(lost),
    )


def _exploded(changes: dict[str, float], grown: list[str]) -> Finding:
    most = max(changes.values())
    return Finding(
        "exploding signal",
        Weight.STOPS,
        f"the signal grows to {most:.1g} times its size behind the first layer",
        "the weights are too large, or nothing normalises: the loss begins far from what it should, and a step goes "
        "too far",
        "Put a BatchNormalization behind each convolution, or take kernel_initializer='he_normal'",
        most,
        tuple(grown),
    )


def gradients(examined: Examined) -> Iterator[Finding]:
    """Find layers that no gradient reaches, or gradients that vanish or explode."""
    if not examined.gradients:
        return
    sizes: dict[str, float] = {}
    none: list[str] = []
    for name, variables in variables_by_part(examined.subject.parts).items():
        found = [examined.gradients.get(id(variable)) for variable in variables]
        known = [
            (gradient, variable) for gradient, variable in zip(found, variables, strict=True) if gradient is not None
        ]
        if not any(gradient.any() for gradient, _ in known):
            none.append(name)
        else:
            sizes[name] = max(_size(gradient, variable) for gradient, variable in known)
    if none:
        yield Finding(
            "no gradient",
            Weight.STOPS if len(none) >= len(sizes) else Weight.COSTS,
            f"no gradient reaches {len(none)} layers",
            "what they compute does not reach the loss, or passes through something without a derivative: argmax, "
            "round, stop_gradient, a NumPy function, units that are all dead",
            "Use what they return in the output, with operations that have derivatives",
            len(none),
            tuple(none),
        )
    yield from _sizes({name: size for name, size in sizes.items() if _is_kernel(examined.subject.parts[name])})


def _is_kernel(part: Any) -> bool:
    return any(hasattr(part, name) for name in ("kernel", "depthwise_kernel"))


def _size(gradient: Any, variable: Any) -> float:
    return relative(gradient, variable) if np.isfinite(gradient).all() else np.inf


def _sizes(sizes: dict[str, float]) -> Iterator[Finding]:
    if len(sizes) <= _BEGINNING:
        return
    names = list(sizes)
    exploded = [name for name in names if sizes[name] > _STEEP]
    last = sizes[names[-1]]
    flat = [name for name in names if sizes[name] < last / _APART]
    if exploded:
        most = max(sizes.values())
        yield Finding(
            "exploding gradient",
            Weight.STOPS,
            f"gradients of {len(exploded)} layers are up to {most:.1g} times as large as the weights",
            "one step with a usual learning rate throws the weights away",
            "Normalise behind each convolution, or begin with smaller weights; clipnorm=1.0 in the optimizer helps "
            "meanwhile",
            most,
            tuple(exploded),
        )
    elif names[0] in flat and all(sizes[name] < last / _NEARLY_APART for name in names[:_BEGINNING]):
        ratio = sizes[names[0]] / last
        yield Finding(
            "vanishing gradient",
            Weight.STOPS,
            f"the first layer's gradient is {ratio:.1g} times the last one's, each as a share of its weights",
            "on its way back each layer shrinks it, so that the first layers stand still",
            "Put a BatchNormalization behind each convolution, add shortcuts, and take ReLU instead of sigmoid or tanh",
            ratio,
            tuple(flat),
        )


RULES = (dead_units, saturated_units, signal, gradients)
