"""Faults of depthwise and pointwise kernels: how they start, what is frozen, how many there are, what normalises."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from groupwise.diagnosis.examined import Examined, is_trainable
from groupwise.diagnosis.finding import Finding, Weight, two_digits
from groupwise.diagnosis.subject import Call, Subject
from groupwise.rewrite.drop_ins import DENSE, DEPTHWISE, SEPARABLE
from groupwise.running.graph import is_weightless

_UNTRAINED = 0.2  # how far a kernel's deviation may be from its initialiser's, as a share of it
_CUT = 0.87962566103423978  # the deviation of a normal distribution that is cut at twice its own
_TOO_SMALL = 1.5  # times
_HOPELESS = 1e3  # times that a signal shrinks or grows in all, from where on nothing is learned
_EACH = 3.0  # times that a separable convolution may shrink or grow it
_IN_A_ROW = 3  # of them, from where on it matters
_FEW = 3  # channels of an image


def depthwise_kernel(layer: Any) -> Any:
    """Return the depthwise kernel of a depthwise or separable layer: (height, width, channels, multiplier)."""
    return layer.depthwise_kernel if type(layer) in SEPARABLE else layer.kernel


@dataclass(frozen=True)
class Start:
    """How a depthwise kernel started.

    Attributes:
        fan_in: how many numbers an output sums over. assumed: how many its initialiser took it for.
        factor: how many times too small the kernel is for that.
    """

    fan_in: int
    assumed: int
    factor: float


def start_of(layer: Any) -> Start | None:
    """Return how a depthwise kernel started.

    None where its initialiser counts no fan-in, or the kernel is no longer as it started: it was trained, or is
    another's.
    """
    initializer, kernel = layer.depthwise_initializer, depthwise_kernel(layer)
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return None
    height, width, channels, multiplier = kernel.shape
    area = height * width
    of_mode = {"fan_in": (1.0, channels), "fan_out": (multiplier, multiplier)}
    true, taken = of_mode.get(initializer.mode, ((1 + multiplier) / 2, (channels + multiplier) / 2))
    deviation = float(np.std(keras.ops.convert_to_numpy(kernel)))
    assumed = math.sqrt(initializer.scale / (taken * area))
    # A step of training leads beyond where the initialiser's numbers end.
    end = {"uniform": 3**0.5, "truncated_normal": 2 / _CUT}.get(initializer.distribution, math.inf) * assumed
    is_inside = float(np.abs(keras.ops.convert_to_numpy(kernel)).max()) <= end * (1 + 1e-4)
    is_as_it_started = is_inside and abs(deviation / assumed - 1) < _UNTRAINED
    return Start(area, area * channels, math.sqrt(taken / true)) if is_as_it_started else None


def depthwise_fan_in(examined: Examined) -> Iterator[Finding]:
    """Find depthwise kernels that start too small, since their fan-in was computed as if they were dense."""
    starts = {call.name: start for call in small_depthwise(examined.subject) if (start := start_of(call.operation))}
    if starts:
        product = math.prod(start.factor for start in starts.values())
        worst = max(starts.values(), key=lambda start: start.factor)
        yield Finding(
            "depthwise fan-in",
            Weight.STOPS if product > _HOPELESS else Weight.COSTS,
            f"depthwise kernels start up to {worst.factor:.1f} times too small, {two_digits(product)} times in all,",
            f"each output sums over {worst.fan_in} numbers, the kernel's height times its width, and the initialiser "
            f"took it for {worst.assumed}, as if the kernel were dense; nothing normalises behind them",
            "Pass depthwise_initializer=groupwise.layers.DepthwiseHeNormal() where an activation follows, else "
            f"keras.initializers.RandomNormal(stddev={worst.fan_in**-0.5:.3g}); or put a BatchNormalization behind "
            "each",
            product,
            tuple(starts),
        )


def small_depthwise(subject: Subject) -> Iterator[Call]:
    """Yield the calls of depthwise kernels that start too small, and behind which nothing normalises."""
    optimizer = subject.optimizer
    if optimizer is not None and optimizer.built and int(keras.ops.convert_to_numpy(optimizer.iterations.value)):
        return  # they were trained
    for call in subject.calls:
        kind = type(call.operation)
        if kind not in (*DEPTHWISE, *SEPARABLE):
            continue
        start = start_of(call.operation)
        # A 1x1 behind a depthwise convolution scales as the convolution does.
        if start and start.factor > _TOO_SMALL and not subject.is_normalised(call, through=int(kind in DEPTHWISE)):
            yield call


def frozen_pointwise(examined: Examined) -> Iterator[Finding]:
    """Find pointwise kernels that are frozen behind a depthwise convolution that is trained, or whose columns agree."""
    same = list(constant_pointwise(examined.subject))
    if same:
        is_frozen = not all(is_trainable(call.operation, kernel) for call, kernel in same)
        yield Finding(
            "pointwise kernel of one channel",
            Weight.STOPS if is_frozen else Weight.COSTS,
            f"pointwise kernels {'are frozen and ' if is_frozen else ''}have the same weights for each of their "
            f"{max(kernel.shape[-1] for _, kernel in same)} outputs",
            "every output channel is the same sum, so that the layer is 1 channel wide, however many filters it has",
            "Leave them trainable, and initialise them at random: pointwise_initializer='he_normal'; a sum over the "
            "filters of each output is a dense or a grouped convolution",
            1.0,
            tuple(call.name for call, _ in same),
        )
    constant = {id(kernel) for _, kernel in same}
    frozen = [
        call.name
        for call, kernel in pointwise_kernels(examined.subject)
        if id(kernel) not in constant and not is_trainable(call.operation, kernel) and _depthwise_is_trained(call)
    ]
    if frozen:
        yield Finding(
            "frozen pointwise kernel",
            Weight.COSTS,
            f"{len(frozen)} pointwise kernels are frozen, and the depthwise ones before them are not,",
            "only the depthwise step learns, which never mixes two channels",
            "Set trainable = True before compile",
            len(frozen),
            tuple(frozen),
        )


def separable_units(subject: Subject) -> Iterator[Call]:
    """Yield the calls of separable convolutions, and of 1x1 convolutions that read a depthwise one."""
    for call in subject.calls:
        layer = call.operation
        is_pointwise = type(layer) in DENSE and tuple(layer.kernel_size) == (1, 1) and layer.groups == 1
        if type(layer) in SEPARABLE or (is_pointwise and depthwise_before(call) is not None):
            yield call


def pointwise_kernels(subject: Subject) -> Iterator[tuple[Call, Any]]:
    """Yield the kernel of each pointwise step: its call and the variable."""
    for call in separable_units(subject):
        yield call, call.operation.pointwise_kernel if type(call.operation) in SEPARABLE else call.operation.kernel


def constant_pointwise(subject: Subject) -> Iterator[tuple[Call, Any]]:
    """Yield those whose outputs are all the same sum."""
    for call, kernel in pointwise_kernels(subject):
        values = keras.ops.convert_to_numpy(kernel)
        if values.shape[-1] > 1 and np.ptp(values, axis=-1).max() <= 1e-6 * np.abs(values).max():
            yield call, kernel


def depthwise_before(call: Call) -> Any:
    """Return the depthwise layer whose outputs a call reads, with nothing but what has no weights between; or None."""
    node = call.graph.before(call.node)
    while node is not None and is_weightless(node.operation):
        node = call.graph.before(node)
    return node.operation if node is not None and type(node.operation) in DEPTHWISE else None


def _depthwise_is_trained(call: Call) -> bool:
    layer = call.operation if type(call.operation) in SEPARABLE else depthwise_before(call)
    return is_trainable(layer, depthwise_kernel(layer))


def multiplier_of_one(examined: Examined) -> Iterator[Finding]:
    """Find depthwise kernels of one filter a channel, where there are hardly any channels."""
    few = {}
    for call in examined.calls(*DEPTHWISE, *SEPARABLE):
        *_, channels, multiplier = depthwise_kernel(call.operation).shape
        is_alone = call.graph.only_reader(call.node.input_tensors[0]) is not None
        if channels <= _FEW and multiplier == 1 and is_alone and not examined.subject.is_head(call):
            few[call.name] = channels
    if few:
        count = min(few.values())
        yield Finding(
            "multiplier of 1 on few channels",
            Weight.COSTS,
            f"all that is seen of the image passes through {count} filter{'s' * (count > 1)}",
            f"a depth multiplier of 1 gives each of the {count} input channels one filter, and all outputs are "
            "mixtures of those",
            "Begin with a dense convolution, or take depth_multiplier=8 or more there",
            count,
            tuple(few),
        )


def nothing_normalises(examined: Examined) -> Iterator[Finding]:
    """Find separable convolutions in a row that lose the signal, or blow it up, since nothing normalises."""
    units = list(unnormalised(examined.subject))
    changes = [change for call in units if (change := _change(examined, call))]
    if len(changes) < _IN_A_ROW:
        return
    change = math.prod(changes)
    # Where kernels start too small, a norm would make it good, however little of it a chance lets one see.
    starts_well = next(small_depthwise(examined.subject), None) is None
    if not starts_well or not all(1 / _EACH < each < _EACH for each in changes):
        yield Finding(
            "separable without normalisation",
            Weight.STOPS if not 1 / _HOPELESS < change < _HOPELESS else Weight.COSTS,
            f"{len(changes)} separable convolutions change the signal's size {min(changes):.2g} to {max(changes):.2g} "
            f"times, {two_digits(change)} times in all,",
            "each is two linear steps that may shrink or grow what passes through, and nothing normalises behind them",
            "Put a keras.layers.BatchNormalization behind each",
            change,
            tuple(call.name for call in units),
        )


def unnormalised(subject: Subject) -> Iterator[Call]:
    """Yield the calls of separable convolutions that nothing normalises, but for those that give the outputs."""
    return (call for call in separable_units(subject) if not subject.is_normalised(call) and not subject.is_head(call))


def _change(examined: Examined, call: Call) -> float | None:
    """Return how many times its size a signal has behind a separable convolution; None where it cannot be said."""
    before = call.operation if type(call.operation) in SEPARABLE else depthwise_before(call)
    first, last = (examined.seen.get(name) for name in (examined.subject.names[id(before)], call.name))
    if first is None or last is None or not first.reads or not first.reads[2] or not last.finite:
        return None
    return last.deviation / first.reads[2]


RULES = (depthwise_fan_in, frozen_pointwise, multiplier_of_one, nothing_normalises)
