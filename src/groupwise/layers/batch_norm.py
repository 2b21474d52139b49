"""Batch norm as a Keras layer, in one pass with the residual that is added and the activation that follows."""

from functools import reduce
from typing import Any

import keras
from keras import ops

from groupwise import backends
from groupwise.backends import activations, plain_norm
from groupwise.backends.conversions import cast, type_of
from groupwise.backends.sums import accumulator
from groupwise.spec import DTYPES


@keras.saving.register_keras_serializable("groupwise")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, then perhaps a residual and an activation: activation(normalised + residual).

    Where it fits, the C core or the framework's fused operation computes it: images of (batch, height, width, channels)
    with gamma and beta. Weights and moving statistics are Keras's (biased variance, `momentum` the share that stays),
    but in half precision the moving statistics are float32 all the same. All other arguments are Keras's, with their
    defaults.

    Args:
        activation: as for Keras's layers; None for none.
        fused: False runs Keras's own operations.

    Shapes: the inputs' to the same; `call` also takes `residual`, of the inputs' shape, or None, and `then`
        (one of `groupwise.core.epilogues.ACTIVATIONS`), which stands for a linear activation in this call. In a chain
        (`can_link`) it takes the batch's `moments`, mean and variance, which the convolution before has counted, and
        perhaps the bias that the inputs are without; where it `is_read`, by the convolution behind it, it returns mean,
        scale and shift of `plain_links.Reading` alone.

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

    @property
    def _core_activation(self) -> str:
        """The name of the activation as the core knows it; "linear" where it does not."""
        return activations.NAMES.get(self.activation, "linear")

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("name") in ("moving_mean", "moving_variance"):
            # Steps of a hundredth: in half precision the average would stop far from what it follows.
            kwargs["dtype"] = accumulator(kwargs.get("dtype") or self.variable_dtype)
        return super().add_weight(*args, **kwargs)

    def call(
        self,
        inputs: Any,
        residual: Any = None,
        training: bool | None = None,
        mask: Any = None,
        then: str | None = None,
        moments: tuple[Any, ...] | None = None,
        is_read: bool = False,
    ) -> Any:
        if moments is not None:
            return self._by_moments(inputs, moments, residual, then, is_read)
        function = None if mask is not None else self._function(inputs)
        if function is None:
            outputs = super().call(inputs, training=training, mask=mask)
        elif function is plain_norm.normalise:
            outputs = self._normalise(function, training, ops.moveaxis(inputs, self.axis, -1))
            outputs = ops.moveaxis(outputs, -1, self.axis)
        elif function is backends.active.batch_normalise:
            outputs = self._normalise(function, training, inputs)
        else:
            # The core's, in float32, with all that follows.
            known = then or self._core_activation
            inputs, residual = cast(inputs, "float32"), cast(residual, "float32")
            outputs = self._normalise(function, training, inputs, residual, known)
            outputs = cast(outputs, self.compute_dtype)
            return self.activation(outputs) if known == "linear" else outputs
        outputs = cast(outputs, self.compute_dtype)
        activation = activations.FUNCTIONS[then] if then else self.activation
        return activation(outputs if residual is None else ops.add(outputs, residual))

    def can_link(self, inputs: Any) -> bool:
        """Return whether convolutions may count and read for it by the batch: the core would normalise it, too."""
        over = backends.active.over_processes
        is_alone = over is None or over(plain_norm.normalise) is plain_norm.normalise
        return bool(self.trainable and is_alone and self.can_end(inputs))

    def can_end(self, inputs: Any) -> bool:
        """Return whether the convolution of such images may do its work by the moving statistics."""
        core = backends.active.core_norm
        is_core = core is not None and self._function(inputs) is core.normalise
        return is_core and type_of(inputs) == self.compute_dtype == "float32"

    def ending(self) -> tuple[Any, Any, Any]:
        """Return the mean, scale and shift with which the convolution before it does its work by moving statistics."""
        return self._reading(*backends.active.tensors((self.moving_mean, self.moving_variance)))

    def _reading(self, mean: Any, variance: Any) -> tuple[Any, Any, Any]:
        gamma, beta = backends.active.tensors((self.gamma, self.beta))
        return mean, gamma * ops.rsqrt(variance + self.epsilon), beta

    def _by_moments(self, inputs: Any, moments: tuple[Any, ...], residual: Any, then: str | None, is_read: bool) -> Any:
        """Return what the batch's mean and variance make of the inputs, or how they are to be read."""
        mean, variance, *bias = moments
        followed = reduce(ops.add, bias, mean), variance
        for variable, new in zip((self.moving_mean, self.moving_variance), followed, strict=True):
            variable.assign(variable * self.momentum + ops.stop_gradient(new) * (1.0 - self.momentum))
        for value in bias:
            # What a bias adds, the mean takes away: its gradient is zero, and not lacking.
            mean = mean + (value - value)
        if is_read:
            return self._reading(mean, variance)
        gamma, beta = backends.active.tensors((self.gamma, self.beta))
        known = then or self._core_activation
        function = backends.active.core_norm.normalise  # type: ignore[union-attr]
        outputs, *_ = function(inputs, gamma, beta, (mean, variance), self.epsilon, residual, known)
        return self.activation(outputs) if known == "linear" else outputs

    def _function(self, inputs: Any) -> Any:
        """Return the function that normalises these inputs; None where Keras's own operations do."""
        # Keras before 3.13 has no renorm.
        if getattr(self, "renorm", False) or self.synchronized:
            return None
        dtype = type_of(inputs)
        if dtype == "float64":
            # On PyTorch and JAX Keras's own computes in float32.
            return plain_norm.normalise
        is_image = len(inputs.shape) == 4 and self.axis in (-1, 3)
        if not (self.fused and self.center and self.scale and is_image) or dtype not in DTYPES:
            return None
        runtime = backends.active.runtime(inputs)
        in_core = backends.active.core_norm is not None and runtime.device == "cpu" and runtime.core
        # TensorFlow's and PyTorch's fused operations read bfloat16 as it is, and are exact enough for it.
        if in_core and (dtype != "bfloat16" or backends.active.batch_normalise is None):
            return backends.active.core_norm.normalise  # type: ignore[union-attr]
        return backends.active.batch_normalise

    def _normalise(self, function: Any, training: bool | None, inputs: Any, *options: Any) -> Any:
        """Return what `function` makes of the inputs, and let the moving statistics follow the batch's."""
        training = bool(training and self.trainable)
        wide = accumulator(type_of(inputs))
        moving, learned = (self.moving_mean, self.moving_variance), (self.gamma, self.beta)
        mean, variance, gamma, beta = (cast(value, wide) for value in backends.active.tensors((*moving, *learned)))
        gamma = ops.ones_like(mean) if gamma is None else gamma
        beta = ops.zeros_like(mean) if beta is None else beta
        statistics = None if training else (mean, variance)
        if training and backends.active.over_processes is not None:
            function = backends.active.over_processes(function)
        outputs, *batch = function(inputs, gamma, beta, statistics, self.epsilon, *options)
        if training:
            for variable, old, new in zip(moving, (mean, variance), batch, strict=True):
                variable.assign(old * self.momentum + new * (1.0 - self.momentum))
        return outputs

    def get_config(self) -> dict[str, Any]:
        own = {"activation": keras.activations.serialize(self.activation), "fused": self.fused}
        return {**super().get_config(), **own}
