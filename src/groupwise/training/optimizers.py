"""The optimizer of a recipe: Keras's own, with the schedule, the weight decay and the average that it asks for."""

import inspect
import math
from typing import Any

import keras
from keras import ops

from groupwise.errors import UserError
from groupwise.recipes import Recipe
from groupwise.texts import did_you_mean, nearest
from groupwise.training.layer_decay import decay_by_layer


@keras.saving.register_keras_serializable("groupwise")
class WarmUpThenDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise to the peak, then "cosine" or "linear" to zero, or "constant".

    Args:
        peak: the highest learning rate.
        warm_up_steps, total_steps: how long the rise, and all of it, takes.
        shape: "cosine", "linear" or "constant".
        first_step: the update at which it begins; other than 0 after a restart.
        accumulated: the optimizer's steps for each update.

    Examples:
        >>> schedule = WarmUpThenDecay(1.0, warm_up_steps=2, total_steps=6, shape="linear")
        >>> [float(schedule(step)) for step in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    def __init__(
        self,
        peak: float,
        warm_up_steps: int,
        total_steps: int,
        shape: str,
        first_step: int = 0,
        accumulated: int = 1,
    ) -> None:
        self.peak, self.warm_up_steps, self.total_steps, self.shape = peak, warm_up_steps, total_steps, shape
        self.first_step, self.accumulated = first_step, accumulated

    def __call__(self, step: Any) -> Any:
        # Keras asks with its count of steps, whether or not they update the weights.
        update = ops.cast(step, "int32") // self.accumulated
        step = ops.maximum(ops.cast(update, "float32") - self.first_step, 0.0)
        rise = (step + 1.0) / max(self.warm_up_steps, 1)
        done = ops.clip((step - self.warm_up_steps) / max(self.total_steps - self.warm_up_steps, 1), 0.0, 1.0)
        if self.shape == "cosine":
            fall = 0.5 + 0.5 * ops.cos(math.pi * done)
        else:
            fall = 1.0 - done if self.shape == "linear" else ops.ones_like(done)
        return self.peak * ops.where(step < self.warm_up_steps, rise, fall)

    def get_config(self) -> dict[str, Any]:
        names = ("peak", "warm_up_steps", "total_steps", "shape", "first_step", "accumulated")
        return {name: getattr(self, name) for name in names}


def make_optimizer(
    recipe: Recipe, total_steps: int, model: keras.Model, first_step: int = 0
) -> keras.optimizers.Optimizer:
    """Return the recipe's optimizer, built for the model's variables.

    Args:
        recipe: of which optimizer, rate, schedule, decays, clipping, average and accumulation are looked at.
        total_steps: of the learning rate's schedule: updates of the weights.
        model: whose variables it trains.
        first_step: of the schedule: an update.

    Raises:
        UserError: as `optimizer_of`.
    """
    warm_up = round(recipe.warm_up * total_steps)
    # Biases and batch norm's scales and offsets are the vectors among the variables.
    vectors = [variable for variable in model.trainable_variables if len(variable.shape) < 2]
    # Keras on PyTorch takes a share of no variables for a mistake, and AdamW takes None for one.
    decay = recipe.weight_decay if len(vectors) < len(model.trainable_variables) else 0.0
    kind = optimizer_of(recipe)
    optimizer = kind(
        WarmUpThenDecay(recipe.learning_rate, warm_up, total_steps, recipe.schedule, first_step, recipe.accumulate),
        weight_decay=decay or (0.0 if issubclass(kind, keras.optimizers.AdamW) else None),
        global_clipnorm=recipe.clip_norm or None,
        use_ema=recipe.average > 0,
        ema_momentum=recipe.average or 0.99,
        gradient_accumulation_steps=recipe.accumulate if recipe.accumulate > 1 else None,
        **recipe.optimizer_options,
    )
    if decay and vectors:
        optimizer.exclude_from_weight_decay(var_list=vectors)
    optimizer.build(model.trainable_variables)
    # fit() would end by overwriting the weights with their average, and could not go on with them.
    optimizer.finalize_variable_values = _leave_as_they_are
    if recipe.layer_decay < 1:
        decay_by_layer(optimizer, model, recipe.layer_decay)
    if recipe.average and recipe.accumulate > 1:
        _average_at_updates(optimizer)
    return optimizer


def _leave_as_they_are(_: Any) -> None:
    pass


def _average_at_updates(optimizer: Any) -> None:
    """Let the weights' average change with the weights: Keras's does at each step, accumulating ones included."""
    apply, momentum = optimizer.apply, optimizer.ema_momentum
    steps = next(variable for variable in optimizer.variables if variable.name == "iteration")

    def apply_and_average(*arguments: Any) -> None:
        is_update = (steps + 1) % optimizer.gradient_accumulation_steps == 0
        optimizer.ema_momentum = ops.where(is_update, momentum, 1.0)
        apply(*arguments)
        optimizer.ema_momentum = momentum

    optimizer.apply = apply_and_average


def optimizer_of(recipe: Recipe) -> type[keras.optimizers.Optimizer]:
    """Return the class of Keras's that a recipe names.

    Raises:
        UserError: Keras has no such optimizer, or it takes no such option; Nadam, and a rate for each layer.
    """
    base = keras.optimizers.Optimizer
    members = inspect.getmembers(keras.optimizers, inspect.isclass)
    classes = {name.lower(): member for name, member in members if issubclass(member, base) and member is not base}
    if recipe.optimizer.lower() not in classes:
        hint = did_you_mean(nearest(recipe.optimizer.lower(), classes, likeness=0.4))
        hint = hint or f"there are {', '.join(classes)}"
        raise UserError(f"recipe {recipe.name!r}: Keras has no optimizer {recipe.optimizer!r}; {hint}")
    kind = classes[recipe.optimizer.lower()]
    known = inspect.signature(kind).parameters
    unknown = [name for name in recipe.optimizer_options if name not in known]
    if unknown:
        raise UserError(f"recipe {recipe.name!r}: optimizer {recipe.optimizer!r} takes no {unknown[0]!r}")
    if recipe.layer_decay < 1 and issubclass(kind, keras.optimizers.Nadam):
        says = f"layer_decay = {recipe.layer_decay!r}: optimizer {recipe.optimizer!r} has one rate for all layers"
        raise UserError(f"recipe {recipe.name!r}: {says}; take adamw")
    return kind
