"""PyTorch: a setting of any kind, anywhere in a model, is seen by the next step, and modes see its operations."""

import enum
import warnings
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from groupwise.models import steps
from tests.frameworks import BACKEND
from tests.recorded import (
    Does,
    Python,
    assert_trains_alike,
    batches,
    compiled,
    convolution,
    network,
    optimizer,
    pair,
    small,
    trained,
)

if BACKEND != "torch":
    pytest.skip("the steps are PyTorch's; the backend is another", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Sign(enum.Enum):
    PLUS = 1
    MINUS = -1


class Held:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, true: Any, predicted: Any) -> Any:
        return self.factor * keras.losses.sparse_categorical_crossentropy(true, predicted, from_logits=True)


def _scale(layer: Any, inputs: Any) -> Any:
    return inputs * float(np.asarray(layer.value).ravel()[0])


def _sum(layer: Any, inputs: Any) -> Any:
    return inputs * (layer.value.value if isinstance(layer.value, Sign) else layer.value.factor)


@pytest.mark.parametrize(
    ("does", "before", "after"),
    [
        (_scale, np.float32(1), np.float32(2)),
        (_scale, np.bool_(True), np.bool_(False)),
        (_scale, (1.0, 2.0), (2.0, 1.0)),
        (_scale, np.ones(1), np.full(1, 2.0)),
        (_scale, [1.0], [2.0]),
        (_sum, Sign.PLUS, Sign.MINUS),
        (_sum, Held(1.0), Held(2.0)),
        (lambda layer, inputs: layer.value(inputs), partial(torch.mul, other=1.0), partial(torch.mul, other=2.0)),
        (lambda layer, inputs: inputs.to(layer.value).float(), torch.float32, torch.bfloat16),
    ],
)
def test_a_setting_of_any_type_is_seen(does: Does, before: Any, after: Any) -> None:
    def change(model: Any, number: int) -> None:
        if number == 9:
            model.layers[1].value = after

    assert_trains_alike(lambda: small(Python(does, value=before)), change)


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (lambda: [1.0], "[0]"),
        (lambda: [[1.0]], "[0][0]"),
        (lambda: {"a": {"b": 1.0}}, '["a"]["b"]'),
        (lambda: deque([1.0]), "[0]"),
        (lambda: ([1.0],), "[0][0]"),
        (lambda: Held(1.0), ".factor"),
        (lambda: Slotted(1.0), ".factor"),
        (lambda: SimpleNamespace(a=SimpleNamespace(b=1.0)), ".a.b"),
        (lambda: [Held(1.0)], "[0].factor"),
        (lambda: Held(Held(1.0)), ".factor.factor"),
    ],
)
def test_a_change_within_a_setting_is_seen(value: Callable[[], Any], where: str) -> None:
    does = eval(f"lambda layer, inputs: inputs * layer.value{where}")

    def change(model: Any, number: int) -> None:
        if number == 9:
            exec(f"value{where} = 2.0", {"value": model.layers[1].value})

    assert_trains_alike(lambda: small(Python(does, value=value())), change)


def with_loss() -> keras.Model:
    model = convolution()
    model.compile(optimizer("sgd"), Held(1.0))
    return model


def with_schedule() -> keras.Model:
    return compiled(convolution(), keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.9)))


def with_module() -> keras.Model:
    return small(Python(lambda layer, inputs: layer.value(inputs), value=torch.nn.Dropout(0.2)))


def _weaker(model: Any) -> None:
    model.layers[1].kernel_regularizer.l2 = 0.5


def _other_regularizer(model: Any) -> None:
    model.layers[1].kernel.regularizer = keras.regularizers.L2(0.5)


def _other_constraint(model: Any) -> None:
    model.layers[1].kernel.constraint.max_value = 0.1


def _other_loss(model: Any) -> None:
    model.loss.factor = 3.0


def _other_schedule(model: Any) -> None:
    model.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.2, 5, 0.9)


def _schedule_itself(model: Any) -> None:
    model.optimizer._learning_rate.initial_learning_rate = 0.2


def _frozen_by_torch(model: Any) -> None:
    for parameter in model.layers[1].parameters():
        parameter.requires_grad = False


def _memory_replaced(model: Any) -> None:
    parameters = list(model.parameters())
    vector = torch.nn.utils.parameters_to_vector(parameters)
    torch.nn.utils.vector_to_parameters(vector * 0.5, parameters)


def _module_setting(model: Any) -> None:
    model.layers[1].value.p = 0.7


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (lambda: convolution(kernel_regularizer=keras.regularizers.L2(0.1)), _weaker),
        (lambda: convolution(kernel_regularizer=keras.regularizers.L2(0.1)), _other_regularizer),
        (lambda: convolution(kernel_constraint=keras.constraints.MaxNorm(1.0)), _other_constraint),
        (with_loss, _other_loss),
        (with_schedule, _other_schedule),
        (with_schedule, _schedule_itself),
        (convolution, _frozen_by_torch),
        (convolution, _memory_replaced),
        (with_module, _module_setting),
    ],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning")
def test_a_setting_anywhere_is_seen(build: Callable[[], Any], change: Callable[[Any], None]) -> None:
    assert_trains_alike(build, lambda model, number: change(model) if number == 9 else None)


def test_random_numbers_before_an_undone_step_are_drawn_again() -> None:
    def looks(_: Any, inputs: Any) -> Any:
        return inputs if inputs.sum() > 0 else inputs * 2

    assert_trains_alike(lambda: small(keras.layers.Dropout(0.5), Python(looks)), count=40)


@pytest.mark.parametrize(
    "does",
    [
        lambda _, inputs: inputs[:, torch.tensor([2, 0, 1, 3, 4, 5, 6, 7])],
        lambda _, inputs: torch.where(inputs > 0, inputs, float("nan")).nan_to_num(0.5),
        lambda _, inputs: inputs.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 1, 1, 1]), 1),
    ],
)
def test_sizes_by_constants_and_what_is_not_a_number_are_recorded(does: Does) -> None:
    assert_trains_alike(lambda: small(Python(does)))


def _change_a_threshold(model: Any, number: int) -> None:
    if number == 9:
        (metric,) = model.metrics[1].metrics
        metric._fn_kwargs["threshold"] = 0.1


@pytest.mark.parametrize(("metric", "change"), [("AUC", None), ("binary_accuracy", _change_a_threshold)])
def test_a_metric_that_has_a_name_is_recorded_and_seen(metric: str, change: Any) -> None:
    def build() -> keras.Model:
        inputs = keras.Input((8, 8, 3))
        model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(inputs)))
        steps.run_recorded(model)
        model.compile(optimizer("sgd"), "binary_crossentropy", metrics=[metric])
        return model

    recorded, own = pair(build)
    data = [(images, labels % 2) for images, labels in batches(own, 16)]
    assert trained(recorded, data, change) == trained(own, data, change)
    assert recorded.train_function.repeated > 4


def test_layers_taken_and_added_are_seen() -> None:
    def build() -> keras.Model:
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
        steps.run_recorded(model)
        return model

    recorded, own = pair(build)
    images = batches(own, 1)[0][0]
    for units in (10, 10, 10, 5, 7):
        for model in (recorded, own):
            keras.utils.set_random_seed(units)
            if units != 10:
                model.pop()
                model.add(keras.layers.Dense(units))
        found = [model.predict_on_batch(images) for model in (recorded, own) for _ in range(4)]
        np.testing.assert_array_equal(found[:4], found[4:])


def test_compiled_anew_begins_anew() -> None:
    def change(model: Any, number: int) -> None:
        if number == 9:
            model.compile(optimizer("rmsprop"), "sparse_categorical_crossentropy", metrics=["accuracy"])

    assert_trains_alike(convolution, change)


def test_many_sizes_by_turns_are_repeated_after_a_while() -> None:
    model = small(keras.layers.Conv2D(4, 3))
    data = [batch for size in range(2, 42) for batch in batches(model, 1, size)]
    with pytest.warns(UserWarning, match="are others at each step"):
        trained(model, data)
    trained(model, batches(model, 8, 50))
    assert model.train_function.repeated
    assert not steps.objections(model)


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.counts[str(function)] += 1
        return function(*arguments, **(keywords or {}))


def test_modes_of_pytorch_see_all_operations() -> None:
    recorded, own = pair(lambda: network("mobilenet_wd4"))
    images = batches(own, 1)[0][0]
    seen = []
    for model in (recorded, own):
        for _ in range(4):
            model.predict_on_batch(images)
        with Counting() as mode, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model.predict_on_batch(images)
        seen.append(mode.counts)
        assert any("watches each operation" in str(each.message) for each in warned) == (model is recorded)
    assert seen[0] == seen[1]
    assert seen[0].total() > 50


def test_a_model_within_a_layer_is_recorded_with_it() -> None:
    def build() -> keras.Model:
        inner = network("mobilenet_wd4")
        vars(inner).pop("make_predict_function")
        steps.run_recorded(inner)
        images = torch.ones(1, 32, 32, 3)
        with torch.no_grad():
            inner.make_predict_function()
        return small(Python(lambda _, inputs: inputs * inner.predict_function([(images * inputs.mean(),)]).mean()))

    recorded, own = pair(build)
    data = batches(own, 8)
    with pytest.warns(UserWarning, match="watches each operation"):
        found = trained(recorded, data)
    assert found == trained(own, data)
    assert recorded.train_function.repeated > 4


def test_a_default_device_watches_nothing() -> None:
    model = convolution()
    with torch.device("cpu"):
        trained(model, batches(model, 8))
    assert model.train_function.repeated > 4
