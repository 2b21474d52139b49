"""What people write themselves and put into a model: layers, models, losses, regularizers. For `drawn_models`."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

_register = keras.saving.register_keras_serializable("drawn")


@_register
class Block(layers.Layer):
    """Made of layers, which it creates at once, with a configuration of its own."""

    def __init__(self, filters: int, groups: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.groups = filters, groups
        options = {"dtype": self.dtype_policy}
        penalty = "l2" if self.variable_dtype == "float32" else None
        self.convolution = layers.Conv2D(
            filters, 3, padding="same", groups=groups, kernel_regularizer=penalty, **options
        )
        self.others = [layers.BatchNormalization(**options), layers.DepthwiseConv2D(3, padding="same", **options)]

    def build(self, input_shape: Any) -> None:
        self.convolution.build(input_shape)
        for other in self.others:
            other.build((*input_shape[:-1], self.filters))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.others[1](self.others[0](self.convolution(inputs), training=training))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "groups": self.groups}


@_register
class LateBlock(layers.Layer):
    """Made of layers that it creates when it is built."""

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        self.first = layers.Conv2D(channels, 1, activation="relu", dtype=self.dtype_policy)
        self.second = layers.SeparableConv2D(channels, 3, padding="same", dtype=self.dtype_policy)
        self.first.build(input_shape)
        self.second.build(input_shape)

    def call(self, inputs: Any) -> Any:
        return inputs + self.second(self.first(inputs))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@_register
class Remembering(layers.Layer):
    """Adds what it learnt in an `adapt` of its own: no weight, but saved with them as Keras's guide shows."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.offset = np.zeros(1, "float32")

    def adapt(self, values: np.ndarray) -> None:
        self.offset = np.asarray(values, "float32")

    def call(self, inputs: Any) -> Any:
        return inputs + ops.cast(self.offset, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def save_own_variables(self, store: Any) -> None:
        store["offset"] = self.offset

    def load_own_variables(self, store: Any) -> None:
        self.offset = np.asarray(store["offset"])


@_register
class Penalised(layers.Layer):
    """Adds a loss of its own, and counts the batches it was trained on."""

    def __init__(self, factor: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape: Any) -> None:
        self.seen = self.add_weight(shape=(), initializer="zeros", trainable=False, name="seen", dtype="float32")

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        self.add_loss(self.factor * ops.mean(ops.square(ops.cast(inputs, "float32"))))
        if training:
            self.seen.assign(self.seen + 1)
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor": self.factor}


@_register
class DoubledConvolution(layers.Conv2D):
    """Computes something else than its base class."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return 2 * super().convolution_op(inputs, kernel)


@_register
class ShiftedNormalization(layers.BatchNormalization):
    """Computes something else than its base class."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return super().call(inputs, training=training, mask=mask) + 0.5


@_register
class DoubledLoss(keras.Model):
    """Twice the loss that it was compiled with, and a method of its own."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().compute_loss(*args, **kwargs)

    def classes(self) -> list[str]:
        return ["ant", "bee"]


@_register
class CountedSteps(keras.Model):
    """Steps of its own, and a variable that belongs to no layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps_taken = self.add_weight(shape=(), initializer="ones", trainable=False, name="steps_taken")

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().train_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().test_step(*args, **kwargs)


@_register
class Calibrated(keras.Model):
    """Its `call` divides the graph's outputs by a temperature that it learns, with a setting of its own."""

    def __init__(self, *args: Any, temperature: float = 2.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.temperature = self.add_weight(shape=(), initializer=keras.initializers.Constant(temperature), name="t")

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        outputs = super().call(inputs, training=training, mask=mask)
        return keras.tree.map_structure(lambda y: y / ops.cast(self.temperature, y.dtype), outputs)


@_register
class Labelled(keras.Model):
    """Labels that travel in its configuration."""

    def __init__(self, *args: Any, labels: Any = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.labels = list(labels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "labels": list(self.labels)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Labelled":
        graph = {name: value for name, value in config.items() if name != "labels"}
        model: Labelled = super().from_config(graph, custom_objects)
        model.labels = list(config["labels"])
        return model


@_register
class SelfMade(keras.Model):
    """Makes its graph by itself, as its configuration says, and keeps its layers as attributes."""

    def __init__(self, filters: int = 8, **kwargs: Any) -> None:
        inputs = keras.Input((8, 6, 4))
        convolution = layers.Conv2D(filters, 3, groups=2, padding="same", name="convolution")
        norm = layers.BatchNormalization(name="norm")
        x = layers.ReLU()(norm(convolution(inputs)))
        super().__init__(inputs, layers.Dense(3, name="scores")(layers.GlobalAveragePooling2D()(x)), **kwargs)
        self.filters, self.convolution, self.norm = filters, convolution, norm

    def get_config(self) -> dict[str, Any]:
        return {"filters": self.filters, "name": self.name}


@_register
def halved_error(true: Any, predicted: Any) -> Any:
    """A loss function of somebody's own."""
    return ops.mean(ops.square(ops.cast(true, predicted.dtype) - predicted), axis=-1) / 2


@_register
class LogarithmicPenalty(keras.regularizers.Regularizer):
    """A penalty of somebody's own, summed over the weights."""

    def __call__(self, x: Any) -> Any:
        return 1e-2 * ops.sum(ops.log(1 + ops.square(ops.cast(x, "float32"))))

    def get_config(self) -> dict[str, Any]:
        return {}


MODELS: dict[str, Any] = {
    "functional": keras.Model,
    "doubled loss": DoubledLoss,
    "counted steps": CountedSteps,
    "calibrated": Calibrated,
    "labelled": Labelled,
}
"""The classes of a model that is made of inputs and outputs."""
