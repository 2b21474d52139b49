"""JAX: a model's predictions of one batch without what Keras does for the variables that they leave as they are."""

from typing import Any

import jax
import keras
import numpy as np

from groupwise import keras_private


class Prediction:
    """`keras.Model.predict_on_batch`, with the same results.

    Keras hands every variable to XLA and back, and assigns it: 1.0 ms of an image of ShuffleNet, of 5.1. Here come back
    those alone that a prediction changes. What Keras's own way knows besides (distributions, `run_eagerly`) it does.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._made_for: Any = None
        self._compiled: Any = None

    def __call__(self, x: Any) -> Any:
        model: Any = self.model
        variables = model.variables if self._can_be_lean() else []
        values = list(map(keras_private.held_value, variables))
        if not variables or any(value is None for value in values):
            return type(model).predict_on_batch(model, x)
        model.make_predict_function()
        if model.predict_function is not self._made_for:
            self._made_for, self._compiled = model.predict_function, jax.jit(self._predict)
        outputs, changed = self._compiled(values, x)
        for place, value in changed.items():
            variables[place].assign(value)
        return keras.tree.map_structure(np.array, outputs)

    def _can_be_lean(self) -> bool:
        model: Any = self.model
        is_whole = model.built and not model.run_eagerly and model.jit_compile
        is_here = keras.distribution.distribution() is None and not keras_private.is_stateless()
        return bool(is_whole and is_here)

    def _predict(self, values: list[Any], x: Any) -> tuple[Any, dict[int, Any]]:
        """Return the outputs for a batch, and by their places the variables' values that are others afterwards."""
        model: Any = self.model
        places = {id(variable): place for place, variable in enumerate(model.variables)}
        trainable, others = (
            [places[id(variable)] for variable in variables]
            for variables in (model.trainable_variables, model.non_trainable_variables)
        )
        state = [values[place] for place in trainable], [values[place] for place in others]
        outputs, after = model.predict_step(state, (x,))
        pairs = zip(others, after, strict=True)
        return outputs, {place: value for place, value in pairs if value is not values[place]}
