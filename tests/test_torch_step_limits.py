"""PyTorch: what no recording can follow runs as Keras runs it, and says why; hooks, threads, memory, compilation."""

import random
from typing import Any

import keras
import numpy as np
import pytest

from groupwise.models import steps
from tests.frameworks import BACKEND
from tests.recorded import (
    BATCHES,
    Does,
    Python,
    assert_same,
    assert_trains_alike,
    batches,
    compiled,
    convolution,
    optimizer,
    pair,
    small,
    state,
    trained,
)

if BACKEND != "torch":
    pytest.skip("the steps are PyTorch's; the backend is another", allow_module_level=True)

import torch


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
    assert_trains_alike(lambda: small(Python(_looks)))


@pytest.mark.parametrize(
    ("does", "reason"),
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
def test_what_cannot_be_recorded_runs_as_in_keras(does: Does, reason: str) -> None:
    recorded, own = pair(lambda: small(Python(does)))
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

    model = small(Python(heard))
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


def _counts_to_three(layer: Any, inputs: Any) -> Any:
    layer.value = (layer.value + 1) % 3
    return inputs * (1.0 + layer.value)


def _counts_in_a_list(layer: Any, inputs: Any) -> Any:
    layer.value[0] += 1
    return inputs * (2.0 if layer.value[0] % 5 == 0 else 1.0)


def _seeds(_: Any, inputs: Any) -> Any:
    torch.manual_seed(3)
    return inputs + torch.rand(1)


def _seeds_by_module(_: Any, inputs: Any) -> Any:
    torch.random.manual_seed(3)
    return inputs + torch.rand(1)


def _seeds_the_generator(_: Any, inputs: Any) -> Any:
    torch.default_generator.manual_seed(3)
    return inputs + torch.rand(1)


def _by_sparse_product(_: Any, inputs: Any) -> Any:
    return torch.sparse.mm(torch.eye(6).to_sparse(), inputs.reshape(6, -1)).reshape(inputs.shape)


def _repeats_by_what_it_counts(_: Any, inputs: Any) -> Any:
    counts = torch.ones(2, dtype=torch.int64)
    counts += (inputs[:, 0, 0, 0] > 0).long()
    return inputs * inputs[:, 0, 0, 0].repeat_interleave(counts).mean()


def _own_numpy(layer: Any, inputs: Any) -> Any:
    return inputs * float(layer.value.random())


def _draws_from_its_own(layer: Any, inputs: Any) -> Any:
    return inputs + torch.rand(1, generator=layer.value)


def _torch_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _writes(_: Any, inputs: Any) -> Any:
    return inputs.sub_(0.5)


@pytest.mark.parametrize(
    ("does", "value", "reason"),
    [
        (_counts_to_three, 0, "changes its own settings"),
        (_counts_in_a_list, [0], "changes its own settings"),
        (_seeds, None, "sets the state of PyTorch's random numbers"),
        (_seeds_by_module, None, "sets the state of PyTorch's random numbers"),
        (_seeds_the_generator, None, "sets the state of PyTorch's random numbers"),
        (_by_sparse_product, None, "uses a sparse tensor"),
        (
            lambda layer, inputs: inputs + torch.rand(1, generator=layer.value),
            _torch_generator,
            "a generator of random",
        ),
        (_repeats_by_what_it_counts, None, "makes a tensor whose size depends on values"),
        (_own_numpy, np.random.default_rng, "a generator of random numbers of its own"),
        (lambda layer, inputs: inputs * layer.value.random(), random.Random, "a generator of random numbers"),
        (_writes, None, "writes into the batch"),
    ],
)
def test_what_changes_by_itself_runs_as_in_keras(does: Does, value: Any, reason: str) -> None:
    def build() -> keras.Model:
        own = value(1) if callable(value) else list(value) if isinstance(value, list) else value
        return small(Python(does, value=own))

    recorded, own = pair(build)
    with pytest.warns(UserWarning, match="runs step by step") as warned:
        found = trained(recorded, batches(own, 14))
    assert any(reason in str(each.message) for each in warned)
    np.testing.assert_array_equal(found, trained(own, batches(own, 14)))
    assert_same(recorded, own)


def test_a_learning_rate_of_a_function_runs_as_in_keras() -> None:
    rates = iter(np.linspace(0.1, 0.01, 40).tolist())
    model = compiled(convolution(), keras.optimizers.SGD(lambda: next(rates)))
    with pytest.warns(UserWarning, match="its learning rate is a function"):
        trained(model, batches(model, 6))


def test_a_sparse_setting_is_no_obstacle() -> None:
    value = torch.eye(3).to_sparse()
    assert_trains_alike(lambda: small(Python(lambda _, inputs: inputs * 2, value=value)))


@pytest.mark.filterwarnings("ignore:(Anomaly Detection|Error detected in):UserWarning")
def test_anomalies_are_detected() -> None:
    model = small(keras.layers.Conv2D(4, 3), Python(lambda _, inputs: (inputs - inputs).sqrt()))
    data = batches(model, 8)
    trained(model, data)
    with (
        torch.autograd.detect_anomaly(check_nan=True),
        pytest.warns(UserWarning, match="detect_anomaly looks"),
        pytest.raises(RuntimeError, match="returned nan values"),
    ):
        trained(model, data)


def test_autocast_runs_as_in_keras() -> None:
    recorded, own = pair(convolution)
    seen = []
    for model in (recorded, own):
        for number in range(3):
            model.set_weights([value * (1 + number) for value in model.get_weights()])
            with torch.autocast("cpu", torch.bfloat16):
                if model is recorded and not number:
                    with pytest.warns(UserWarning, match=r"torch\.autocast"):
                        model.predict_on_batch(batches(model, 1)[0][0])
                seen.append([model.predict_on_batch(images) for images, _ in batches(model, 3)])
    np.testing.assert_array_equal(seen[:3], seen[3:])


@pytest.mark.parametrize("where", ["tensor", "everywhere"])
def test_hooks_on_weights_and_on_all_modules_are_called(where: str) -> None:
    recorded, own = pair(convolution)
    calls: list[int] = []

    def halved(gradient: Any) -> Any:
        calls.append(1)
        return gradient * 0.5

    def counted(*_: Any) -> None:
        calls.append(1)

    def run(model: Any) -> Any:
        losses = trained(model, batches(own, 8))
        if where == "tensor":
            hook = model.layers[1].kernel.value.register_hook(halved)
        else:
            hook = torch.nn.modules.module.register_module_forward_hook(counted)
        losses += trained(model, batches(own, 4))
        hook.remove()
        return losses + trained(model, batches(own, 8))

    with pytest.warns(UserWarning, match="somebody listens"):
        found = run(recorded)
    heard = len(calls)
    assert found == run(own)
    assert len(calls) == 2 * heard > 0
    assert recorded.train_function.repeated > 8


def test_gradients_of_a_batch_are_there() -> None:
    model = convolution()
    images, labels = batches(model, 1)[0]
    given = torch.tensor(images, requires_grad=True)
    with pytest.warns(UserWarning, match="wants the gradients of a batch"):
        trained(model, [(given, labels)] * 4)
    assert given.grad is not None
