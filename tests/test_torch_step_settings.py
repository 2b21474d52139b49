"""PyTorch: a setting of any kind, anywhere in a model, is seen by the next step; what changes by itself is refused."""

import enum
import random
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

from groupwise.models import steps
from tests.frameworks import BACKEND
from tests.recorded import assert_same, assert_trains_alike, batches, compiled, network, optimizer, pair, small, trained

if BACKEND != "torch":
    pytest.skip("the steps are PyTorch's; the backend is another", allow_module_level=True)

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Does = Callable[[Any, Any], Any]


class Python(keras.layers.Layer):
    """A layer that does what a function of it says, with settings of its own."""

    def __init__(self, does: Does, **settings: Any) -> None:
        super().__init__()
        self.does = does
        for name, value in settings.items():
            setattr(self, name, value)

    def call(self, inputs: Any) -> Any:
        return inputs if isinstance(inputs, keras.KerasTensor) or inputs.is_meta else self.does(self, inputs)


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


def _by_list(model: Any) -> None:
    model.layers[1].value[0] = 2.0


def _by_held(model: Any) -> None:
    model.layers[1].value.factor = 2.0


def test_a_change_within_a_setting_is_seen() -> None:
    def at_nine(change: Callable[[Any], None]) -> Callable[[Any, int], None]:
        return lambda model, number: change(model) if number == 9 else None

    assert_trains_alike(lambda: small(Python(_scale, value=[1.0])), at_nine(_by_list))
    assert_trains_alike(lambda: small(Python(_sum, value=Held(1.0))), at_nine(_by_held))


def convolution(**settings: Any) -> keras.Model:
    return small(keras.layers.Conv2D(4, 3, **settings), keras.layers.ReLU())


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


def _counts_to_three(layer: Any, inputs: Any) -> Any:
    layer.value = (layer.value + 1) % 3
    return inputs * (1.0 + layer.value)


def _counts_in_a_list(layer: Any, inputs: Any) -> Any:
    layer.value[0] += 1
    return inputs * (2.0 if layer.value[0] % 5 == 0 else 1.0)


def _seeds(_: Any, inputs: Any) -> Any:
    torch.manual_seed(3)
    return inputs + torch.rand(1)


def _repeats_by_what_it_counts(_: Any, inputs: Any) -> Any:
    counts = torch.ones(2, dtype=torch.int64)
    counts += (inputs[:, 0, 0, 0] > 0).long()
    return inputs * inputs[:, 0, 0, 0].repeat_interleave(counts).mean()


def _own_numpy(layer: Any, inputs: Any) -> Any:
    return inputs * float(layer.value.random())


def _writes(_: Any, inputs: Any) -> Any:
    return inputs.sub_(0.5)


@pytest.mark.parametrize(
    ("does", "value", "reason"),
    [
        (_counts_to_three, 0, "changes its own settings"),
        (_counts_in_a_list, [0], "changes its own settings"),
        (_seeds, None, "sets the state of PyTorch's random numbers"),
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


def test_a_metric_of_many_thresholds_is_recorded() -> None:
    def build() -> keras.Model:
        inputs = keras.Input((8, 8, 3))
        model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(keras.layers.Flatten()(inputs)))
        steps.run_recorded(model)
        model.compile(optimizer("sgd"), "binary_crossentropy", metrics=[keras.metrics.AUC()])
        return model

    recorded, own = pair(build)
    data = [(images, labels % 2) for images, labels in batches(own, 12)]
    assert trained(recorded, data) == trained(own, data)
    assert recorded.train_function.repeated > 4


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
