"""Batch norm as a Keras layer, in one pass with the residual that is added and the activation that follows."""

from typing import Any

import keras
from keras import ops

from groupwise import backends

CORE_ACTIVATIONS = {
    keras.activations.linear: "linear",
    keras.activations.relu: "relu",
    keras.activations.relu6: "relu6",
}
"""What the core computes while an output is still in a register; others follow as an operation of their own."""
_ACTIVATIONS = {name: function for function, name in CORE_ACTIVATIONS.items()}


@keras.saving.register_keras_serializable("groupwise")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, then perhaps a residual and an activation: activation(normalised + residual).

    Where it fits, the C core or the framework's fused operation computes it: images of (batch, height, width, channels)
    with gamma and beta. Weights and moving statistics are Keras's (biased variance, `momentum` the share that stays).

    Args:
        activation: as for Keras's layers; None for none. fused: False runs Keras's own operations.
        All other arguments: Keras's, with their defaults.

    Shapes: the inputs' to the same; `call` also takes `residual`, of the inputs' shape, or None, and `then`
        ("relu", "relu6"), which stands for a linear activation in this call.

    Examples:
        >>> BatchNormalization(activation="relu").compute_output_shape((16, 56, 56, 256))
        (16, 56, 56, 256)
    """

    def __init__(self, *args: Any, activation: Any = None, fused: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation, self.fused = keras.activations.get(activation), fused
        if fused and not backends.xla_compiles():
            # Keras then runs the model without XLA, and says so.
            self.supports_jit = False
        self._core_activation = CORE_ACTIVATIONS.get(self.activation, "linear")

    def call(
        self,
        inputs: Any,
        residual: Any = None,
        training: bool | None = None,
        mask: Any = None,
        then: str | None = None,
    ) -> Any:
        # Keras before 3.13 has no renorm.
        is_plain = (
            self.fused and self.center and self.scale and not (getattr(self, "renorm", False) or self.synchronized)
        )
        is_plain = is_plain and _type_of(inputs) != "float64"  # TensorFlow's fused operation has none
        if not is_plain or mask is not None or len(inputs.shape) != 4 or self.axis not in (-1, 3):
            outputs = super().call(inputs, training=training, mask=mask)
        elif _runs_in_core(inputs):
            assert backends.active.core_norm is not None
            normalise, activation = backends.active.core_norm.normalise, then or self._core_activation
            outputs = self._normalise(normalise, training, inputs, residual, activation)
            return self.activation(outputs) if activation == "linear" else outputs
        elif backends.active.batch_normalise is not None:
            outputs = self._normalise(backends.active.batch_normalise, training, inputs)
        else:
            outputs = super().call(inputs, training=training, mask=mask)
        activation = _ACTIVATIONS[then] if then else self.activation
        return activation(outputs if residual is None else ops.add(outputs, residual))

    def _normalise(self, function: Any, training: bool | None, inputs: Any, *options: Any) -> Any:
        """Return what `function` makes of the inputs, and let the moving statistics follow the batch's."""
        training = bool(training and self.trainable)
        gamma, beta, *statistics = (
            ops.convert_to_tensor(variable)
            for variable in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        outputs, mean, variance = function(
            inputs, gamma, beta, None if training else tuple(statistics), self.epsilon, *options
        )
        if training:
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs

    def get_config(self) -> dict[str, Any]:
        own = {"activation": keras.activations.serialize(self.activation), "fused": self.fused}
        return {**super().get_config(), **own}


def _runs_in_core(inputs: Any) -> bool:
    """Return whether the core normalises these inputs: float32 on a CPU, on a framework that calls it."""
    if backends.active.core_norm is None or _type_of(inputs) != "float32":
        return False
    runtime = backends.active.runtime(inputs)
    return runtime.device == "cpu" and runtime.core


def _type_of(inputs: Any) -> str:
    name: str = keras.backend.standardize_dtype(inputs.dtype)
    return name
