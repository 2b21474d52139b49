"""PyTorch: weights, memory, gradients and threads of recorded steps; what predictions compute of weights alone."""

import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import keras
import numpy as np
import pytest

from tests.frameworks import BACKEND
from tests.recorded import batches, network, pair, small, state, trained

if BACKEND != "torch":
    pytest.skip("the steps are PyTorch's; the backend is another", allow_module_level=True)

import torch


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
    assert prepared[0]
    first, *others = [sorted(map(id, tensors.values())) for tensors in prepared]
    assert all(each == first for each in others)


def _replace_memory(model: Any, factor: float) -> None:
    parameters = list(model.parameters())
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(parameters) * factor, parameters)


def test_predictions_follow_weights_that_lie_elsewhere() -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    images = batches(own, 1)[0][0]
    for factor in (1.0, 1.5, 0.5, 1.2, 0.8):
        for model in (recorded, own):
            _replace_memory(model, factor)
        expected = own.predict_on_batch(images)
        for _ in range(4):
            np.testing.assert_allclose(recorded.predict_on_batch(images), expected, atol=1e-5 * abs(expected).max())


def test_folded_weights_are_made_once() -> None:
    model = network("mobilenet_wd4")
    images = batches(model, 1)[0][0]
    for _ in range(5):
        model.predict_on_batch(images)
    (program,) = model.predict_function._programs.values()
    before = program._first[None].run.state[1]
    model.predict_on_batch(images)
    after = program._first[None].run.state[1]
    assert len(before) > 40
    assert all(before[index] is after[index] for index in before)


def test_evaluation_and_prediction_leave_gradients_alone() -> None:
    model = network("mobilenet_wd4")
    images, labels = batches(model, 1)[0]
    model(images).sum().backward()
    before = [variable.value.grad for variable in model.trainable_variables]
    for _ in range(4):
        model.predict_on_batch(images)
        model.test_on_batch(images, labels)
    assert before[0] is not None
    assert all(v.value.grad is grad for v, grad in zip(model.trainable_variables, before, strict=True))


def test_weights_that_were_replaced_are_let_go() -> None:
    model = small(keras.layers.Conv2D(8, 3))
    data = batches(model, 6)
    trained(model, data)
    kernel = model.layers[1].kernel
    old = weakref.ref(kernel.value)
    kernel._value = torch.nn.Parameter(kernel.value.detach() * 2)
    model.layers[1].torch_params.clear()
    model.layers[1]._track_variables()
    trained(model, data)
    gc.collect()
    assert old() is None


def test_threads_look_up_programs_at_once() -> None:
    model = small(keras.layers.Conv2D(8, 3))
    images = [batches(model, 1, size)[0][0] for size in range(1, 9)]
    expected = [model.predict_on_batch(image) for image in images for _ in range(4)][::4]
    failed: list[BaseException] = []

    def predict() -> None:
        try:
            for image, wanted in zip(images * 20, expected * 20, strict=True):
                np.testing.assert_allclose(model.predict_on_batch(image), wanted, atol=1e-5)
        except BaseException as error:
            failed.append(error)

    threads, interval = [threading.Thread(target=predict) for _ in range(4)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_names_that_keras_gives_are_left_to_the_user() -> None:
    program = """
import keras, numpy as np
from groupwise.models import steps
inputs = keras.Input((3,), name="inputs")
model = keras.Model(inputs, keras.layers.Dense(2, name="dense")(inputs), name="own")
steps.run_recorded(model)
model.compile(keras.optimizers.Adam(name="adam"), keras.losses.MeanSquaredError(name="loss"))
model.train_on_batch(np.ones((2, 3)), np.ones((2, 2)))
made = keras.layers.Flatten(), keras.layers.Layer(), keras.Sequential(), keras.Model()
print([each.name for each in made])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['flatten', 'layer', 'sequential', 'model']"


def test_a_step_that_fails_in_its_second_compiled_piece_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(function: Any, **_: Any) -> Any:
        def run(registers: Any) -> Any:
            function(registers)
            raise RuntimeError("no memory")

        return run

    def build() -> keras.Model:
        model = small(keras.layers.BatchNormalization(), keras.layers.Dropout(0.5))
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
        return model

    recorded, own = pair(build)
    own.compile("sgd", "sparse_categorical_crossentropy")
    recorded.make_train_function()
    monkeypatch.setattr(torch, "compile", half)
    data = batches(own, 8)
    with pytest.warns(UserWarning, match=r"cannot compile the step \(no memory\)"):
        found = trained(recorded, data)
    monkeypatch.undo()
    assert found == trained(own, data)
    for mine, its in zip(state(recorded), state(own), strict=True):
        np.testing.assert_array_equal(mine, its)
