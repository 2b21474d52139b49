"""Gradients of several steps that add up to one update: what a large batch does, to rounding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.data import Augmentation
from groupwise.data.places import Division
from groupwise.errors import UserError
from groupwise.interruption import Interrupted
from groupwise.models.registry import GREY, Backbone, Variant
from groupwise.recipes import recipe_of
from groupwise.training import checkpoints
from groupwise.training.optimizers import WarmUpThenDecay
from groupwise.training.workspace import Workspace
from tests import tiny as bars
from tests.test_checkpoints import assert_same_end, begin, newest, resume, stop_at
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny


class Plain(Backbone):
    """Without batch norm, which sees each step's images alone."""

    def features(self, inputs: Any) -> dict[str, Any]:
        convolution = keras.layers.Conv2D(8, 3, 2, activation="relu", name="stem")
        return {"stem": convolution(inputs)}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> str:
    variant = Variant("plain", "test", Plain(), num_classes=3, input_shape=(8, 8, 1), reduction=2, preprocessing=GREY)
    monkeypatch.setitem(models.variants(), "plain", variant)
    return "plain"


LARGE = bars.recipe(
    model="plain",
    epochs=3,
    batch_size=32,
    warm_up=0.4,
    augmentation=Augmentation(flip=True, crop_padding=1, mixup=0.2),
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"average": 0.8, "clip_norm": 0.5},
        {"average": 0.8, "optimizer": "adamw", "optimizer_options": {}, "learning_rate": 0.01, "weight_decay": 0.1},
    ],
    ids=["sgd", "average", "adamw"],
)
def test_it_equals_the_large_batch(plain: str, changes: dict[str, Any], tmp_path: Path) -> None:
    recipe, dataset = replace(LARGE, **changes), bars.dataset(tmp_path)
    begin(dataset, tmp_path / "large", recipe)
    begin(dataset, tmp_path / "small", replace(recipe, accumulate=4))
    large, small = (Workspace(tmp_path / name).read_metrics() for name in ("large", "small"))
    for one, other in zip(large, small, strict=True):
        for name in ("loss", "learning_rate", "test_loss"):
            assert other[name] == pytest.approx(one[name], rel=1e-5), name
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=0.011)
    for one_weight, other_weight in zip(
        bars.weights(tmp_path / "large" / "last.keras"), bars.weights(tmp_path / "small" / "last.keras"), strict=True
    ):
        np.testing.assert_allclose(other_weight, one_weight, rtol=1e-4, atol=1e-6)
    assert checkpoints.step_of(checkpoints.paths(tmp_path / "small" / "checkpoints")[0]) == 36


def test_a_run_goes_on_between_two_updates(tiny: str, tmp_path: Path) -> None:
    recipe = bars.recipe(epochs=2, batch_size=32, accumulate=2, average=0.9, optimizer="adamw", optimizer_options={})
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "whole", recipe)
    with pytest.raises(Interrupted):
        begin(dataset, tmp_path / "parts", recipe, observer=stop_at(2, 2))
    assert newest(tmp_path / "parts").step == 9
    resume(dataset, tmp_path / "parts")
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.once
def test_a_batch_is_its_pieces() -> None:
    whole, pieces = Division(40, 12, equal=True), Division(40, 12, equal=True, pieces=3)
    assert (whole.steps, pieces.steps) == (3, 9)
    for batch in range(3):
        parts = [list(pieces.part_of(3 * batch + piece)) for piece in range(3)]
        assert [len(part) for part in parts] == [4, 4, 4]
        assert [place for part in parts for place in part] == list(whole.part_of(batch))
    assert [pieces.images_in(steps) for steps in (0, 1, 3, 9)] == [0, 4, 12, 36]
    shared = [Division(40, 12, equal=True, part=(index, 2), pieces=3) for index in range(2)]
    assert [place for each in shared for place in each.part_of(4)] == list(pieces.part_of(4))
    with pytest.raises(ValueError, match="cannot be divided into 8 equal parts; take a multiple of 8, such as 8"):
        Division(40, 12, equal=True, part=(0, 2), pieces=4)


@pytest.mark.once
def test_the_rate_follows_the_updates() -> None:
    each = WarmUpThenDecay(1.0, 3, 10, "cosine", first_step=2)
    third = WarmUpThenDecay(1.0, 3, 10, "cosine", first_step=2, accumulated=3)
    assert [float(third(step)) for step in range(36)] == [float(each(step // 3)) for step in range(36)]
    assert WarmUpThenDecay.from_config(third.get_config()).get_config() == third.get_config()


@pytest.mark.once
def test_what_does_not_divide_is_refused(
    tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="accumulate = 3: must divide batch_size=16"):
        bars.recipe(accumulate=3)
    with pytest.raises(UserError, match="accumulate=64: the 96 images to train on, fewer than a batch of 128, do not"):
        begin(bars.dataset(tmp_path), tmp_path / "run", bars.recipe(batch_size=128, accumulate=64))
    assert (
        recipe_of({name: value for name, value in bars.RECIPE.as_dict().items() if name != "accumulate"}).accumulate
        == 1
    )
    monkeypatch.chdir(tmp_path)
    assert "accumulate = 5: must divide" in refusal(
        capsys, "train", "bars.npz", "--recipe", "digits", "--accumulate", 5
    )


@pytest.mark.once
def test_another_batch_size_brings_another_rate_and_says_so(
    tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bars.write_npz(tmp_path / "bars.npz")
    settings = ("train", "bars.npz", "--model", tiny, "--recipe", "digits", "--epochs", 1)
    code, output, errors = run(capsys, *settings, "--batch-size", 16, "--accumulate", 2)
    assert code == 0
    assert "batches of 16 in 2 steps, adamw, learning rate up to 0.00075" in output
    said = "the learning rate is 0.00075, and not the recipe's 0.003, since batches are of 16 images instead of 64"
    assert f"groupwise: {said}; --learning-rate says otherwise\n" in errors
    code, output, errors = run(capsys, *settings, "--batch-size", 16, "--learning-rate", 0.003)
    assert "learning rate up to 0.003" in output
    assert "the learning rate" not in errors
