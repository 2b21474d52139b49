"""Models whose steps are recorded, beside the same ones as Keras runs them."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from groupwise import models
from groupwise.models import steps

Build = Callable[[], keras.Model]
Does = Callable[[Any, Any], Any]
BATCHES = 20


class Python(keras.layers.Layer):
    """A layer that does what a function of it and of its inputs says, with settings of its own."""

    def __init__(self, does: Does, **settings: Any) -> None:
        super().__init__()
        self.does = does
        for name, value in settings.items():
            setattr(self, name, value)

    def call(self, inputs: Any) -> Any:
        return inputs if isinstance(inputs, keras.KerasTensor) or inputs.is_meta else self.does(self, inputs)


def optimizer(kind: str) -> Any:
    schedule = keras.optimizers.schedules.CosineDecay(0.1, BATCHES)
    made = {
        "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-4, clipnorm=1.0),
        "nesterov": lambda: keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, global_clipnorm=1.0),
        "average": lambda: keras.optimizers.AdamW(1e-3, use_ema=True, ema_overwrite_frequency=3),
        "accumulated": lambda: keras.optimizers.SGD(schedule, momentum=0.9, gradient_accumulation_steps=3),
        "rmsprop": lambda: keras.optimizers.RMSprop(1e-3, clipvalue=0.5),
        "lion": lambda: keras.optimizers.Lion(1e-4, weight_decay=1e-2),
    }
    return made[kind]()


def network(name: str, kind: str = "sgd", dtype: str | None = None, size: int = 32, **options: Any) -> keras.Model:
    """Return a compiled network for ten classes of images of this size."""
    channels = 1 if name.startswith("mnist") else 3
    model = models.create(name, input_shape=(size, size, channels), num_classes=10, dtype=dtype, **options)
    return compiled(model, optimizer(kind))


def compiled(model: keras.Model, by: Any) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=by, loss=loss, metrics=["accuracy"])
    return model


def small(*layers: Any) -> keras.Model:
    """Return a compiled model of a few layers, whose steps are recorded."""
    inputs = outputs = keras.Input((8, 8, 3))
    for layer in (*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)):
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    steps.run_recorded(model)
    return compiled(model, optimizer("sgd"))


def convolution(**settings: Any) -> keras.Model:
    return small(keras.layers.Conv2D(4, 3, **settings), keras.layers.ReLU())


def pair(build: Build) -> tuple[keras.Model, keras.Model]:
    """Return a model whose steps are recorded, and the same one as Keras runs it."""
    made = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        made.append(build())
    for kind in steps.KINDS:
        vars(made[1]).pop(f"make_{kind}_function")
    return made[0], made[1]


def batches(model: keras.Model, count: int = BATCHES, size: int = 2) -> list[tuple[Any, Any]]:
    draw = np.random.default_rng(3)
    shape = (size, *model.input_shape[1:])
    return [(draw.normal(size=shape).astype("float32"), draw.integers(0, 10, size)) for _ in range(count)]


def trained(
    model: keras.Model, data: list[Any], between: Callable[[keras.Model, int], None] | None = None
) -> list[Any]:
    """Return the losses and metrics of a step for each batch."""
    keras.utils.set_random_seed(2)
    seen = []
    for number, batch in enumerate(data):
        if between is not None:
            between(model, number)
        seen.append(model.train_on_batch(*batch))
    return seen


def state(model: keras.Model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]


def assert_same(recorded: keras.Model, own: keras.Model) -> None:
    for mine, its in zip(state(recorded), state(own), strict=True):
        np.testing.assert_array_equal(mine, its)


def assert_trains_alike(
    build: Build, between: Callable[[keras.Model, int], None] | None = None, count: int = BATCHES
) -> keras.Model:
    """Train both and compare everything; return the recorded one, which did most steps without Python."""
    recorded, own = pair(build)
    data = batches(own, count)
    np.testing.assert_array_equal(trained(recorded, data, between), trained(own, data, between))
    assert_same(recorded, own)
    assert not steps.objections(recorded)
    assert recorded.train_function.repeated > count // 4
    return recorded
