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
        if not self._can_be_lean():
            return type(model).predict_on_batch(model, x)
        model.make_predict_function()
        variables = model.variables
        values = list(map(keras_private.held_value, variables))
        if not keras_private.is_of_keras(model.predict_function) or any(value is None for value in values):
            return type(model).predict_on_batch(model, x)
        if model.predict_function is not self._made_for:
            self._made_for, self._compiled = model.predict_function, jax.jit(self._predict, static_argnums=1)
        trained = tuple(variable.trainable for variable in variables) if model.trainable else ()
        outputs, changed = self._compiled(values, trained, x)
        for place, value in changed.items():
            variables[place].assign(value)
        return keras.tree.map_structure(np.array, outputs)

    def _can_be_lean(self) -> bool:
        model: Any = self.model
        is_whole = model.built and not model.run_eagerly and model.jit_compile
        is_here = keras.distribution.distribution() is None and not keras_private.is_stateless()
        return bool(is_whole and is_here)

    def _predict(self, values: list[Any], trained: tuple[bool, ...], x: Any) -> tuple[Any, dict[int, Any]]:
        """Return the outputs for a batch, and by their places the variables' values that are others afterwards.

        Keras, too, forgets what a prediction does to a variable that is trained; XLA compiles anew for each `trained`.
        """
        model: Any = self.model
        trainable = [place for place, is_trained in enumerate(trained) if is_trained]
        others = [place for place in range(len(values)) if place not in trainable]
        state = [values[place] for place in trainable], [values[place] for place in others]
        outputs, after = model.predict_step(state, (x,))
        pairs = zip(others, after, strict=True)
        return outputs, {place: value for place, value in pairs if value is not values[place]}
