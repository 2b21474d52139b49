"""How often a network is traced: once for training and once for all else, whatever is left for a last batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import layers
from groupwise.inference import evaluate, load_network, make_batches, predict_images
from groupwise.inference.evaluation import evaluation_of
from groupwise.training import make_plan, train
from groupwise.training.events import EpochEnded, Event, FitBegun
from tests import tiny as bars
from tests.frameworks import BACKEND

tiny = bars.tiny

pytestmark = pytest.mark.skipif(
    BACKEND == "torch", reason="PyTorch traces no step; what it records, test_torch_step tests"
)

TRAINED = {"tensorflow": 1, "jax": 2}[BACKEND] if BACKEND != "torch" else 0
"""For a step of training; on JAX Keras looks at the shapes of what comes out once before."""


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that says how often the network's first layer was run in Python since it was asked last."""
    seen: list[Any] = []
    call = layers.GroupedConv2D.call

    def recorded(layer: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        if layer.name.startswith("stem"):
            seen.append(inputs.shape)
        return call(layer, inputs, *arguments, **options)

    def count() -> int:
        found = len(seen)
        seen.clear()
        return found

    monkeypatch.setattr(layers.GroupedConv2D, "call", recorded)
    return count


def test_a_training_traces_in_its_first_epoch_alone(tiny: str, tmp_path: Path, traced: Callable[[], int]) -> None:
    counts = []

    def observe(event: Event) -> None:
        if isinstance(event, FitBegun | EpochEnded):
            counts.append(traced())

    data = bars.dataset(tmp_path)  # 96 images to train on and 30 to test on
    plan = make_plan(data, "bars", bars.recipe(epochs=3, batch_size=20))
    train(plan, data, tmp_path / "run", observer=observe)
    assert counts[1:] == [TRAINED + 1, 0, 0]  # and once for the test after each epoch


def test_evaluation_and_prediction_trace_once(tiny: str, tmp_path: Path, traced: Callable[[], int]) -> None:
    data = bars.dataset(tmp_path)
    train(make_plan(data, "bars", bars.recipe(epochs=1)), data, tmp_path / "run", observer=lambda event: None)
    network = load_network(tmp_path / "run")
    batches, whole = (make_batches(data.test, network, size) for size in (20, 30))
    images, labels = whole.batch(0)
    expected = evaluation_of(keras.ops.convert_to_numpy(network(images)), labels.argmax(axis=1))
    traced()
    found = evaluate(network, batches)
    assert traced() == 1  # 20 images, and 10 filled up
    assert (found.count, found.top1, found.top5) == (30, expected.top1, expected.top5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    paths = sorted(bars.write_folder(tmp_path / "photos", train=111, test=30).rglob("*.png"))[:70]
    predictions = list(predict_images(network, paths, on_broken=pytest.fail))
    assert len(predictions) == 70
    assert traced() == 1  # 32, 32, and 6 filled up
    alone = next(predict_images(network, paths[-1:], on_broken=pytest.fail))
    np.testing.assert_allclose(predictions[-1].probabilities, alone.probabilities, atol=1e-5)
    for batch in (batches, whole):
        batch.close()
