"""Faults of the training: its learning rate, found by a short range test, and flags set after `compile`."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from groupwise import keras_private
from groupwise.diagnosis.examined import Examined
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.diagnosis.observing import around, fresh, kept
from groupwise.frameworks import FRAMEWORKS

STEPS = 25
LEAST, MOST = 1e-6, 10.0  # rates that are tried
_RISE = 0.5  # of a loss, at least, and as much as it was: it diverges
_FELL = 0.1  # of all that the loss fell by, from where on a rate does something
_FAR = 1e4  # times below that, thousands of steps do nothing; a fine-tuning's rate is up to 1e3 times smaller


def learning_rate(examined: Examined) -> Iterator[Finding]:
    """Find a rate that is too large or too small for this model and these images, by a short range test.

    The rate grows from step to step, and the loss is noted (Smith, arXiv 1506.01186, section 3.3).
    """
    subject = examined.subject
    rate = subject.learning_rate if subject.learning_rate is not None else _rate_of(subject.optimizer)
    # Without gradients the loss could not be computed of these labels.
    is_own = not keras_private.is_of_keras(type(subject.model).train_step)  # its loss is another
    if rate is None or subject.is_random or not examined.gradients or is_own:
        return
    try:
        optimizer = fresh(subject.optimizer or keras.optimizers.SGD(momentum=0.9), LEAST)
    except Exception:  # one whose schedule has no configuration, or that holds another one
        return
    rates, losses = range_test(examined, optimizer, max(MOST, rate))
    least, most = usable(rates, losses)
    if most is not None and rate >= most:
        yield Finding(
            "learning rate too large",
            Weight.STOPS,
            f"the learning rate is {rate:.2g}, and steps of up to {most:.2g} raised the loss from {losses[0]:.3g} to "
            f"{max(losses):.3g}",
            "such steps go beyond where the gradient says anything",
            f"Take about {most / 10:.1g}, and a warm-up",
            rate,
        )
    elif least is not None and rate < least / _FAR:
        yield Finding(
            "learning rate too small",
            Weight.COSTS,
            f"the learning rate is {rate:.2g}, and the loss began to fall at {least:.2g}",
            "the weights hardly move",
            f"Take about {min(least / 10, 1e-2):.1g}",
            rate,
        )


def _rate_of(optimizer: Any) -> float | None:
    """Return an optimizer's largest rate near its beginning, or None."""
    if optimizer is None:
        return None
    try:
        rate = optimizer.get_config().get("learning_rate")
    except NotImplementedError:  # a schedule of somebody's own
        return None
    return float(rate) if isinstance(rate, int | float) else None


def range_test(examined: Examined, optimizer: Any, most: float) -> tuple[Sequence[float], Sequence[float]]:
    """Return rates up to `most`, and the loss before an optimizer's step with each; the values stay what they are."""
    subject, rates = examined.subject, np.geomspace(LEAST, most, STEPS)
    model = around(subject.model)
    # PyTorch's and TensorFlow's compilers take longer than the steps.
    compiles = FRAMEWORKS[keras.backend.backend()].compiles_training
    wishes = {name: subject.compiled.get(name) for name in ("loss_weights", "run_eagerly")}
    model.compile(
        optimizer,
        examined.loss,
        loss_weights=wishes["loss_weights"],
        run_eagerly=bool(wishes["run_eagerly"]),
        jit_compile=compiles and not wishes["run_eagerly"],
    )
    losses: list[float] = []
    with kept(subject.model):
        for rate in rates:
            optimizer.learning_rate = rate
            # One batch alone: from batch to batch a loss differs by more than a step changes it.
            losses.append(float(keras.tree.flatten(model.train_on_batch(*subject.batches[0]))[0]))
            if not np.isfinite(losses[-1]) or losses[-1] > losses[0] + 10 * max(abs(losses[0]), _RISE):
                break
    return rates[: len(losses)].tolist(), losses


def usable(rates: Sequence[float], losses: Sequence[float]) -> tuple[float | None, float | None]:
    """Return from which rate on the loss falls, and from which on it rises by what it was; None where it does not.

    Examples:
        >>> usable([1e-3, 1e-2, 1e-1, 1.0], [2.3, 2.2, 1.0, 9.0])
        (0.1, 1.0)
    """
    values = np.nan_to_num(np.asarray(losses, np.float64), nan=np.inf, posinf=np.inf)
    above = np.flatnonzero(values > values[0] + max(abs(values[0]), _RISE))
    end = int(above[0]) if len(above) else len(values)
    fall = values[0] - values[:end].min()
    fell = np.flatnonzero(values[:end] < values[0] - max(_FELL * fall, 1e-2 * abs(values[0])))
    return (rates[fell[0]] if len(fell) else None), (rates[end] if len(above) else None)


def flags_after_compile(examined: Examined) -> Iterator[Finding]:
    """Find weights whose `trainable` was set after the optimizer had been built for others."""
    optimizer = examined.subject.optimizer
    if optimizer is None or not optimizer.built:
        return
    built, now = (
        {id(variable) for variable in some}
        for some in (keras_private.built_for(optimizer), examined.subject.model.trainable_variables)
    )
    changed = built ^ now
    names = [
        name
        for name, part in examined.subject.parts.items()
        if any(id(v) in changed for v in getattr(part, "variables", ()))
    ]
    if changed:
        yield Finding(
            "trainable set after compile",
            Weight.COSTS,
            f"{len(changed)} weights have been frozen or freed since the optimizer was built",
            "the optimizer knows others than those that are to be trained: it goes on with the old ones, or fails",
            "Call compile() again after the last change of `trainable`",
            len(changed),
            tuple(names),
        )


RULES = (learning_rate, flags_after_compile)
