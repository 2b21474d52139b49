"""PyTorch: a recorded step gives the losses, weights and states of Keras's own, to the last bit."""

import gc
import random
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.models import steps
from tests.frameworks import BACKEND

if BACKEND != "torch":
    pytest.skip("the steps are PyTorch's; the backend is another", allow_module_level=True)

import torch

Build = Callable[[], keras.Model]
BATCHES = 20


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


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: network("mnist_cnn_separable", size=28), id="mnist_cnn"),
        pytest.param(lambda: network("groupnet_cifar10", "average"), id="groupnet"),
        pytest.param(lambda: network("mobilenet_wd4", "accumulated", dropout=0.3), id="mobilenet"),
        pytest.param(lambda: network("resnet18", "nesterov"), id="resnet"),
        pytest.param(lambda: network("resnext14_16x4d", "lion"), id="resnext"),
        pytest.param(lambda: network("seresnet18", "rmsprop"), id="se-resnet"),
        pytest.param(lambda: network("seresnext26_32x4d", "average"), id="se-resnext"),
        pytest.param(lambda: network("senet16", "accumulated"), id="senet"),
        pytest.param(lambda: network("shufflenet_g3_wd4", "sgd"), id="shufflenet"),
        pytest.param(lambda: network("shufflenet_v2_x0_5", "sgd", dtype="mixed_bfloat16"), id="shufflenet v2"),
        pytest.param(lambda: network("efficientnet_lite0", "average"), id="efficientnet"),
        pytest.param(lambda: network("legacy_xception", "sgd", size=71), id="xception"),
        pytest.param(lambda: network("xception41", "sgd"), id="xception aligned"),
    ],
)
def test_a_family_trains_alike(build: Build) -> None:
    assert_trains_alike(build)


def test_a_loss_that_overflows_is_scaled_alike() -> None:
    def build() -> keras.Model:
        scaled = keras.optimizers.LossScaleOptimizer(optimizer("sgd"), initial_scale=2.0**40, dynamic_growth_steps=3)
        return compiled(models.create("mobilenet_wd4", input_shape=(32, 32, 3), dtype="mixed_float16"), scaled)

    assert_trains_alike(build, count=2 * BATCHES)


def test_random_layers_draw_alike() -> None:
    def build() -> keras.Model:
        noise = (
            keras.layers.GaussianNoise(0.1),
            keras.layers.RandomFlip(seed=3),
            keras.layers.SpatialDropout2D(0.3, seed=4),
        )
        return small(*noise, keras.layers.Dropout(0.5))

    assert_trains_alike(build)


def _lower_rate(model: Any, number: int) -> None:
    if number == 12:
        model.optimizer.learning_rate = 0.001


def _set_weights(model: Any, number: int) -> None:
    if number == 12:
        model.set_weights([0.9 * value for value in model.get_weights()])


def _freeze(model: Any, number: int) -> None:
    if number in (8, 14):
        model.layers[1].trainable = number == 14


def _freeze_a_variable(model: Any, number: int) -> None:
    if number == 9:
        model.layers[1].kernel.trainable = False


def _change_type(model: Any, number: int) -> None:
    if number == 9:
        model.layers[1].dtype_policy = "mixed_bfloat16"


def _change_activation(model: Any, number: int) -> None:
    if number == 9:
        model.layers[1].activation = keras.activations.silu


def _change_rate_of_dropout(model: Any, number: int) -> None:
    model.layers[2].rate = 0.25 if number < 9 else 0.75


@pytest.mark.parametrize(
    "change",
    [
        _lower_rate,
        _set_weights,
        _freeze,
        _freeze_a_variable,
        _change_type,
        _change_activation,
        _change_rate_of_dropout,
    ],
)
def test_a_change_is_seen_by_the_next_step(change: Callable[[keras.Model, int], None]) -> None:
    def build() -> keras.Model:
        return small(keras.layers.Conv2D(8, 3), keras.layers.Dropout(0.25, seed=1), keras.layers.BatchNormalization())

    assert_trains_alike(build, change)


def test_fit_evaluate_and_predict_agree() -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    images, labels = (np.concatenate(part) for part in zip(*batches(own, 11, 3), strict=True))
    weights = np.linspace(0.5, 1.5, len(images))
    seen = []
    for model in (recorded, own):
        keras.utils.set_random_seed(2)
        history = model.fit(
            images, labels, 8, 3, verbose=0, validation_data=(images, labels), sample_weight=weights, shuffle=False
        ).history
        seen.append((history, model.evaluate(images, labels, 8, verbose=0), model.predict(images, 8, verbose=0)))
    (mine, *judged), (its, *expected) = seen
    for name in ("loss", "accuracy"):
        assert mine[name] == its[name]
        np.testing.assert_allclose(mine[f"val_{name}"], its[f"val_{name}"], rtol=1e-5)
    np.testing.assert_allclose(judged[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(judged[1], expected[1], rtol=1e-5, atol=1e-5)
    assert all(getattr(recorded, f"{kind}_function").repeated for kind in steps.KINDS)
    assert not steps.objections(recorded)


def test_a_prediction_follows_the_weights() -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    image = batches(own, 1, 1)[0][0]
    for scale in (1.0, 0.5, 2.0):
        for model in (recorded, own):
            model.set_weights([scale * value for value in model.get_weights()])
        for _ in range(4):
            found, expected = recorded.predict_on_batch(image), own.predict_on_batch(image)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_what_was_trained_is_saved(tmp_path: Path) -> None:
    recorded = assert_trains_alike(lambda: network("shufflenet_v2_x0_5"), count=6)
    recorded.save(tmp_path / "trained.keras")
    loaded = keras.models.load_model(tmp_path / "trained.keras")
    assert_same(loaded, recorded)
    data = batches(recorded, 6)
    assert trained(loaded, data) == trained(recorded, data)


class Doubtful(keras.layers.Layer):
    """A layer whose Python does what the test gives it."""

    def __init__(self, doubt: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.doubt = doubt

    def call(self, inputs: Any) -> Any:
        return inputs if isinstance(inputs, keras.KerasTensor) or inputs.is_meta else self.doubt(self, inputs)


def _looks(_: Any, inputs: Any) -> Any:
    return inputs if inputs.sum() > 0 else -inputs


def _uses(_: Any, inputs: Any) -> Any:
    return inputs * float(inputs.sum())


def _takes(_: Any, inputs: Any) -> Any:
    return inputs * keras.ops.convert_to_tensor(inputs.detach().numpy().mean(axis=-1, keepdims=True))


def _selects(_: Any, inputs: Any) -> Any:
    return inputs * inputs[inputs > 0].mean()


def _draws(_: Any, inputs: Any) -> Any:
    return inputs * (0.5 + random.random())


def _draws_by_numpy(_: Any, inputs: Any) -> Any:
    return inputs * float(0.5 + np.random.rand())  # noqa: NPY002


def _counts(layer: Any, inputs: Any) -> Any:
    layer.count = getattr(layer, "count", 0) + 1
    return inputs * layer.count


def test_a_branch_by_a_number_is_recorded_each_way() -> None:
    assert_trains_alike(lambda: small(Doubtful(_looks)))


@pytest.mark.parametrize(
    ("doubt", "reason"),
    [
        (_uses, "looks at a number that is another one at each step"),
        (_takes, "takes a tensor's memory (numpy)"),
        (_selects, "makes a tensor whose size depends on values"),
        (_draws, "draws random numbers"),
        (_draws_by_numpy, "draws random numbers"),
        (_counts, "are others at each step"),
    ],
)
def test_what_cannot_be_recorded_runs_as_in_keras(doubt: Callable[[Any, Any], Any], reason: str) -> None:
    recorded, own = pair(lambda: small(Doubtful(doubt)))
    data = batches(own, 40)
    with pytest.warns(UserWarning, match="runs step by step, as Keras does") as warned:
        found = trained(recorded, data)
    (said,) = [str(each.message) for each in warned if "step by step" in str(each.message)]
    assert reason in said
    assert reason in steps.objections(recorded)["train"]
    np.testing.assert_array_equal(found, trained(own, data))
    assert_same(recorded, own)


def test_a_hook_is_called_at_each_step() -> None:
    model = small(keras.layers.Conv2D(8, 3))
    data, calls = batches(model, 12), []
    trained(model, data[:6])
    handle = model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    with pytest.warns(UserWarning, match="somebody listens"):
        trained(model, data[6:])
    handle.remove()
    assert len(calls) == 6


def test_a_step_of_ones_own_is_left_alone() -> None:
    calls = []

    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            calls.append(1)
            return super().train_step(data)

    inputs = keras.Input((8, 8, 3))
    model = Own(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
    steps.run_recorded(model)
    trained(compiled(model, "sgd"), batches(model, 6))
    assert len(calls) == 6
    assert steps.objections(model) == {"train": "its train_step is its own"}


def test_a_wrong_batch_is_keras_error_and_spoils_nothing() -> None:
    recorded, own = pair(lambda: small(keras.layers.Conv2D(8, 3)))
    data = batches(own, 12)
    for model in (recorded, own):
        keras.utils.set_random_seed(2)
        for number, (images, labels) in enumerate(data):
            model.train_on_batch(images, labels)
            if number in (1, 6):
                with pytest.raises(ValueError, match="shape"):
                    model.train_on_batch(images[..., :2], labels)
    assert_same(recorded, own)


def test_threads_predict_at_once() -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    images = [batch[0] for batch in batches(own, 8, 1)]
    expected = [own.predict_on_batch(image) for image in images]
    found: dict[int, list[Any]] = {}

    def predict(number: int) -> None:
        found[number] = [recorded.predict_on_batch(image) for image in images]

    threads = [threading.Thread(target=predict, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        np.testing.assert_allclose(found[number], expected, rtol=1e-4, atol=1e-5)


def test_no_step_keeps_a_batch_or_gradients_alive() -> None:
    model = network("mobilenet_wd4")
    data = [(torch.tensor(images), torch.tensor(labels)) for images, labels in batches(model, 5)]
    trained(model, data)
    alive = [weakref.ref(images) for images, _ in data]
    data.clear()
    gc.collect()
    assert not any(reference() is not None for reference in alive)
    assert all(v.value.grad is None for v in model.trainable_variables)


def test_a_prediction_that_folding_would_change_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    monkeypatch.setattr("groupwise.backends.torch.folding._fold", lambda kernel, bias, gamma, *_: (2 * kernel, gamma))
    image = batches(own, 1, 1)[0][0]
    for _ in range(5):
        np.testing.assert_array_equal(recorded.predict_on_batch(image), own.predict_on_batch(image))
    assert recorded.predict_function.repeated == 3


def test_a_compiled_step_gives_the_same_to_rounding() -> None:
    def build() -> keras.Model:
        model = small(keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU())
        model.compile(optimizer("sgd"), "sparse_categorical_crossentropy", jit_compile=True)
        return model

    recorded, own = pair(build)
    own.compile(optimizer("sgd"), "sparse_categorical_crossentropy")
    data = batches(own)
    np.testing.assert_allclose(trained(recorded, data), trained(own, data), rtol=1e-4)
    for mine, its in zip(state(recorded), state(own), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-5)
    assert recorded.train_function.repeated > BATCHES // 2
    np.testing.assert_allclose(
        [recorded.predict_on_batch(images) for images, _ in data[:5]],
        [own.predict_on_batch(images) for images, _ in data[:5]],
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_step_that_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    model = small(keras.layers.Conv2D(8, 3))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    model.make_train_function()
    monkeypatch.setattr(torch, "compile", lambda function, **_: fail)
    with pytest.warns(UserWarning, match=r"cannot compile the step \(no compiler\)"):
        losses = trained(model, batches(model))
    assert np.isfinite(losses).all()
