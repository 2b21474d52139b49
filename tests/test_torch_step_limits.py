"""PyTorch: what no recording can follow runs as Keras runs it, and says why; hooks, threads, memory, compilation."""

import gc
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from groupwise.models import steps
from tests.frameworks import BACKEND
from tests.recorded import (
    BATCHES,
    assert_same,
    assert_trains_alike,
    batches,
    compiled,
    network,
    optimizer,
    pair,
    small,
    state,
    trained,
)

if BACKEND != "torch":
    pytest.skip("the steps are PyTorch's; the backend is another", allow_module_level=True)

import torch


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


def _compares(_: Any, inputs: Any) -> Any:
    return inputs if torch.equal(inputs, inputs.abs()) else -inputs


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
        (_compares, "compares tensors"),
        (_draws, "draws random numbers"),
        (_draws_by_numpy, "draws random numbers"),
        (_counts, "changes its own settings"),
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


def test_run_eagerly_turns_recording_off_and_on_again() -> None:
    calls: list[int] = []

    def heard(_: Any, inputs: Any) -> Any:
        calls.append(1)
        return inputs

    model = small(Doubtful(heard))
    data = batches(model, 18)
    trained(model, data[:6])
    recorded = len(calls)
    assert recorded < 6
    model.run_eagerly = True
    trained(model, data[6:12])
    assert len(calls) == recorded + 6
    assert steps.objections(model)["train"] == "run_eagerly=True asks for Keras's Python"
    model.run_eagerly = False
    trained(model, data[12:])
    assert len(calls) == recorded + 6


def test_a_batch_that_is_its_own_label_is_no_other_batchs_pattern() -> None:
    def build() -> keras.Model:
        inputs = keras.Input((8, 8, 3))
        model = keras.Model(inputs, keras.layers.Conv2D(3, 3, padding="same")(inputs))
        steps.run_recorded(model)
        model.compile("sgd", "mse")
        return model

    recorded, own = pair(build)
    draw = torch.Generator().manual_seed(1)
    images = [torch.rand(2, 8, 8, 3, generator=draw) for _ in range(12)]
    data = [(image, image if number < 6 else images[0]) for number, image in enumerate(images)]
    assert trained(recorded, data) == trained(own, data)
    assert recorded.train_function.repeated > 6


def test_a_batch_of_something_else_runs_as_in_keras() -> None:
    class Array:
        def __init__(self, values: Any) -> None:
            self.values, self.shape, self.dtype = values, values.shape, values.dtype

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            return self.values

    model = small(keras.layers.Conv2D(8, 3))
    images, labels = batches(model, 1)[0]
    with pytest.warns(UserWarning, match="its batches hold something of type Array"):
        model.train_on_batch(images, Array(labels))


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


def test_weights_are_folded_once_for_all_sizes_of_a_batch() -> None:
    model = network("mobilenet_wd4")
    for size in (1, 2, 3):
        for images, _ in batches(model, 4, size):
            model.predict_on_batch(images)
    programs = model.predict_function._programs.values()
    prepared = [program._first[None].run.state[1] for program in programs]
    assert len(prepared) == 3
    first, *others = [sorted(map(id, tensors.values())) for tensors in prepared]
    assert all(each == first for each in others)


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
