"""How much faster a rewritten model is here: both take turns, on the same arrays."""

import statistics
from dataclasses import dataclass
from functools import partial
from itertools import islice

import keras
import numpy as np

from groupwise import keras_private, timing
from groupwise.errors import UserError
from groupwise.rewrite.rebuild import Rewriter

LONG = 10.0  # seconds of a step that is not repeated


@dataclass(frozen=True)
class Speed:
    """How many times as fast a model is as another: in inference, and in a training step with all gradients."""

    inference: float
    training: float

    def __str__(self) -> str:
        return f"inference {self.inference:.2f} times as fast, a training step {self.training:.2f} times"


def measure(before: keras.Model, after: keras.Model, batch_size: int = 8, rounds: int = 5) -> Speed:
    """Return how many times as fast `after` is as `before`, on random arrays and the active framework.

    Copies are measured, so that neither model is trained. A step of over ten seconds is taken once.

    Args:
        before, after: models with the same inputs and outputs, of known sizes.
        batch_size: examples a step.
        rounds: in each of which both models take their turn; the ratio is the median over them.

    Raises:
        UserError: a ValueError, where a size of the inputs, other than the batch's, is not known, or one is no graph of
            layers.

    Examples:
        >>> from groupwise import rewrite
        >>> inputs = keras.Input((8, 8, 4))
        >>> model = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
        >>> measure(model, rewrite.accelerate(model), batch_size=1, rounds=1).inference > 0
        True
    """
    sides = [Rewriter().rewrite(model) for model in (before, after)]
    shapes = [tuple(x.shape[1:]) for x in before.inputs]
    if any(None in shape for shape in shapes):
        raise UserError(
            f"inputs of shapes {shapes}: the size must be known to be measured; build the model for one size"
        )
    random = np.random.default_rng(0)
    arrays = [
        random.normal(size=(batch_size, *shape)).astype(x.dtype) for shape, x in zip(shapes, before.inputs, strict=True)
    ]
    given = keras.tree.pack_sequence_as(keras_private.graph_of(before).input, arrays)
    inference = _ratio([partial(side.predict_on_batch, given) for side in sides], rounds)
    targets = keras.tree.map_structure(lambda y: np.zeros(np.shape(y), "float32"), sides[1].predict_on_batch(given))
    for side in sides:
        side.compile(keras.optimizers.SGD(0.0), "mse")
    training = _ratio([partial(side.train_on_batch, given, targets) for side in sides], rounds)
    return Speed(inference, training)


def _ratio(steps: list[timing.Work], rounds: int) -> float:
    """Return how many times as long the first step takes as the second one."""
    ratios = []
    for step in steps:
        step()  # compiles
    for seconds in islice(timing.rounds(steps), rounds):
        ratios.append(seconds[0] / seconds[1])
        if max(seconds) > LONG:
            break
    return statistics.median(ratios)
