"""Many images are looked at with batch norms folded, once that is seen to give the same."""

from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models, rewrite
from groupwise.inference import folding
from groupwise.inference.outputs import predict_logits
from tests.frameworks import BACKEND


def network() -> Any:
    made = models.create("mobilenet_wd4", input_shape=(32, 32, 3), num_classes=5)
    draw = np.random.default_rng(1)
    made.set_weights([value + 0.1 * draw.random(value.shape, "float32") for value in made.get_weights()])
    return made


def images(count: int = 5) -> list[Any]:
    return list(np.random.default_rng(2).normal(size=(count, 2, 32, 32, 3)).astype("float32"))


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "WORTH_FOLDING", 4)


def test_many_batches_are_folded_and_agree() -> None:
    model = network()
    fold = folding.Folding(model, 5)
    found = [fold.predict_logits(batch, 2) for batch in images()]
    expected = [predict_logits(model, batch, 2) for batch in images()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    kinds = {type(layer).__name__ for layer in fold.model.layers}
    assert ("BatchNormalization" in kinds) == (BACKEND == "torch")


def test_few_batches_and_others_models_are_left_alone() -> None:
    model = network()
    inputs = keras.Input((32, 32, 3))
    for each, batches in ((model, 3), (keras.Model(inputs, model(inputs)), 5)):
        fold = folding.Folding(each, batches)
        for batch in images():
            fold.predict_logits(batch, 2)
        assert fold.model is each


def test_what_does_not_agree_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any) -> Any:
        folded = rewrite.fold_batch_norm(model)
        folded.set_weights([1.01 * value for value in folded.get_weights()])
        return folded

    monkeypatch.setattr(folding, "fold_batch_norm", wrong)
    model = network()
    fold = folding.Folding(model, 5)
    for batch in images():
        fold.predict_logits(batch, 2)
    assert fold.model is model
