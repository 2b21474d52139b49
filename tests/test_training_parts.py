"""What a training is made of: the rate's schedule, the optimizer, the average of weights, the evaluation, the type."""

import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import backends, models
from groupwise.data import load_dataset
from groupwise.errors import UserError
from groupwise.inference import evaluate, make_batches
from groupwise.inference.evaluation import evaluation_of
from groupwise.inference.outputs import predict_logits
from groupwise.interruption import Interruption
from groupwise.routing import Accelerator, Runtime
from groupwise.training import train
from groupwise.training.bookkeeper import swap_average
from groupwise.training.events import Begun, Event, Noted
from groupwise.training.optimizers import WarmUpThenDecay, make_optimizer
from groupwise.training.plan import make_plan, settled_dtype
from groupwise.training.workspace import environment
from tests import tiny as bars

tiny = bars.tiny


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_the_schedule(shape: str) -> None:
    schedule = WarmUpThenDecay(2.0, 5, 20, shape)
    rates = [float(schedule(step)) for step in range(20)]
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    middle = {"cosine": 1 + np.cos(np.pi / 3), "linear": 4 / 3, "constant": 2.0}[shape]
    assert rates[10] == pytest.approx(middle)
    assert WarmUpThenDecay.from_config(schedule.get_config()).get_config() == schedule.get_config()
    later = WarmUpThenDecay(2.0, 5, 20, shape, first_step=7)
    assert [float(later(step)) for step in (6, 7, 17)] == [rates[0], rates[0], rates[10]]


def test_the_optimizer_decays_kernels_alone(tiny: str) -> None:
    network = models.create("tiny")
    optimizer = make_optimizer(bars.recipe(weight_decay=0.1, optimizer_options={}, warm_up=0.0), 10, network)
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in network.trainable_variables]
    optimizer.apply([keras.ops.zeros(variable.shape) for variable in network.trainable_variables])
    for variable, value in zip(network.trainable_variables, before, strict=True):
        share = 1 - 0.1 * 0.05 if len(variable.shape) > 1 else 1.0
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(variable), share * value, rtol=1e-5, err_msg=variable.path
        )


def test_the_average_of_the_weights_can_be_exchanged_for_them(tiny: str) -> None:
    network = models.create("tiny")
    changes = {"average": 0.75, "weight_decay": 0.0, "optimizer_options": {}, "warm_up": 0.0, "schedule": "constant"}
    network.compile(make_optimizer(bars.recipe(**changes), 10, network))
    first = np.array(keras.ops.convert_to_numpy(network.trainable_variables[0]))
    for _ in range(2):
        network.optimizer.apply([keras.ops.ones(variable.shape) for variable in network.trainable_variables])
    # After the first step the average is the weights themselves; the second step takes off 0.05 more.
    for expected in (first - 0.05 - 0.25 * 0.05, first - 0.1):
        swap_average(network)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(network.trainable_variables[0]), expected, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamv"}, "Keras has no optimizer 'adamv'; did you mean adam"),
        ({"optimizer_options": {"momentumm": 0.9}}, "optimizer 'sgd' takes no 'momentumm'"),
    ],
)
def test_a_bad_optimizer_is_named(tiny: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        make_optimizer(bars.recipe(**changes), 10, models.create("tiny"))
    with pytest.raises(UserError, match=message):
        make_plan(bars.dataset(tmp_path), "bars", bars.recipe(**changes))


def test_an_evaluation_counts() -> None:
    logits = np.eye(6, dtype=np.float32)[[0, 1, 1, 5]] * 4
    logits[3] = np.arange(6)
    evaluation = evaluation_of(logits, np.array([0, 1, 2, 0]))
    assert evaluation.top1 == 0.5
    assert evaluation.top5 == 0.75  # the last image's class is the sixth of six
    assert evaluation.count == 4
    assert evaluation.confusion[2, 1] == 1
    images, recall, precision = evaluation.per_class()[1]
    assert (images, recall, precision) == (1, 1.0, 0.5)
    assert np.isnan(evaluation.per_class()[3][1])
    infinite = evaluation_of(np.array([[np.inf, 0.0], [0.0, 1.0]], np.float32), np.array([0, 1]))
    assert np.isnan(infinite.loss)
    assert infinite.top1 == 0.5
    own = logits[np.arange(4), [0, 1, 2, 0]]
    assert evaluation.loss == pytest.approx((np.log(np.exp(logits).sum(1)) - own).mean())


def test_batches_are_evaluated_as_they_are_whatever_the_last_ones_size() -> None:
    network = models.create("mnist_cnn")
    network.metadata["class_names"] = list("0123456789")
    split = load_dataset("digits").test
    evaluations = []
    for size in (64, len(split)):
        batches = make_batches(split, network, size)
        evaluations.append(evaluate(network, batches))
        batches.close()
    assert [evaluation.count for evaluation in evaluations] == [len(split)] * 2
    assert evaluations[0].loss == pytest.approx(evaluations[1].loss, rel=1e-4)
    with pytest.raises(ValueError, match="batch_size=2: there are 3 images"):
        predict_logits(network, np.zeros((3, 28, 28, 1), np.float32), batch_size=2)


@pytest.mark.parametrize(("flags", "fast"), [("sse4_2 avx512f avx512_bf16", True), ("avx2 fma avx512f", False)])
def test_the_fastest_type_is_what_the_processor_multiplies(
    flags: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = tmp_path / "cpuinfo"
    processor.write_text(f"model name\t: some\nflags\t\t: {flags}\n")
    expected = "mixed_bfloat16" if fast and keras.backend.backend() != "jax" else "float32"
    monkeypatch.setattr("groupwise.machine._CPUINFO", processor)
    monkeypatch.setattr(backends.active, "runtime", lambda: Runtime(keras.backend.backend(), "cpu"))
    assert settled_dtype("auto") == expected
    assert settled_dtype(None) == "float32"
    processor.unlink()
    assert settled_dtype("auto") == "float32"


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "mixed_bfloat16"), (False, "float32")])
def test_a_card_with_bfloat16_trains_in_it_unless_the_recipe_says_otherwise(
    has_bfloat16: bool, expected: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(keras.backend.backend(), "gpu", accelerator=Accelerator("card", has_bfloat16))
    monkeypatch.setattr(backends.active, "runtime", lambda: runtime)
    data = bars.dataset(tmp_path)
    for wanted, dtype in (("float32", "float32"), ("auto", expected), (None, expected)):
        plan = make_plan(data, "bars", bars.recipe(dtype=wanted))
        assert plan.recipe.dtype == dtype
    begun = Begun(plan, data, tmp_path, "torch", "card")
    assert begun.facts()["backend"] == f"torch on card, {expected}"
    assert begun.as_dict()["accelerator"] == environment("torch", "card")["accelerator"] == "card"


@pytest.mark.once
def test_batches_that_are_large_for_the_data_are_said(tiny: str, tmp_path: Path) -> None:
    dataset, seen = bars.dataset(tmp_path), list[Event]()
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=1, batch_size=64))
    train(plan, dataset, tmp_path / "run", observer=seen.append)
    (note,) = [str(event) for event in seen if isinstance(event, Noted)]
    assert "96 images is too short for batches of 64" in note
    assert "batch_size=8, with a learning rate that is smaller in proportion" in note


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA passes through the core elsewhere")
def test_what_xla_cannot_compile_is_not_announced(tiny: str, tmp_path: Path) -> None:
    dataset, seen = bars.dataset(tmp_path), list[Event]()
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=1, jit_compile=True))
    train(plan, dataset, tmp_path / "run", observer=seen.append)
    (note,) = [str(event) for event in seen if isinstance(event, Noted)]
    assert note == "The steps are not compiled: XLA on TensorFlow cannot pass through the core."


def test_the_largest_seed_is_one_for_every_epoch(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=2), seed=2**32 - 1)
    assert train(plan, dataset, tmp_path / "run", observer=lambda _: None).epochs == 2


@pytest.mark.once
def test_a_second_signal_does_not_wait_for_the_step_and_an_ignored_one_is_none() -> None:
    interruption = Interruption()
    with interruption:
        signal.raise_signal(signal.SIGTERM)
        assert (interruption.requested, interruption.number) == (True, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Interruption() as unheard:
            signal.raise_signal(signal.SIGTERM)
        assert not unheard.requested
    finally:
        signal.signal(signal.SIGTERM, before)
