"""Layers that do not learn, classes that count alike, and a training that learns nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.data import Augmentation, load_dataset
from groupwise.errors import UserError
from groupwise.inference import evaluation, load_network
from groupwise.inference.evaluation import Evaluation
from groupwise.recipes import recipe_of
from groupwise.training import distribution, make_plan, train
from groupwise.training.events import Event, Noted
from groupwise.training.workspace import Workspace
from tests import tiny as bars
from tests.test_accumulation import plain  # noqa: F401 - a fixture
from tests.test_checkpoints import begin
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny


def test_frozen_layers_stay_as_they_were(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    begin(dataset, tmp_path / "first", bars.recipe(epochs=1))
    plan = make_plan(dataset, "x", bars.recipe(epochs=1, freeze="stem*, nothing_bn*"), weights=str(tmp_path / "first"))
    with pytest.raises(UserError, match=r"freeze= nothing_bn\*: tiny has no such layer; the first ones are stem_conv"):
        train(plan, dataset, tmp_path / "none", observer=lambda _: None)
    assert not (tmp_path / "none").exists()
    plan = replace(plan, recipe=replace(plan.recipe, freeze="stem*,stage1_bn"))
    train(plan, dataset, tmp_path / "second", observer=lambda _: None)
    before, after = (load_network(tmp_path / name) for name in ("first", "second"))
    same = {
        layer.name: all(map(np.array_equal, layer.get_weights(), after.get_layer(layer.name).get_weights()))
        for layer in before.layers
        if layer.weights
    }
    frozen = {name for name, is_same in same.items() if is_same}
    assert frozen == {name for name in same if name.startswith("stem")} | {"stage1_bn"}
    assert {"stem_conv", "stem_bn", "head"} <= same.keys()


@pytest.mark.once
def test_what_cannot_be_frozen_is_refused(
    tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ("train", bars.write_npz(tmp_path / "bars.npz"), "--model", tiny, "--recipe", "digits", "--epochs", 1)
    assert "--freeze stem*: layers of fresh weights that do not learn" in refusal(
        capsys, *settings, "--freeze", "stem*"
    )
    assert run(capsys, *settings, "--output", "first")[0] == 0
    code, _, errors = run(capsys, *settings, "--weights", "first", "--freeze", "*")
    assert (code, errors) == (2, "groupwise: --freeze *: nothing is left that learns\n")
    assert run(capsys, *settings, "--weights", "first", "--freeze", "stem*", "--class-weights", "balanced")[0] == 0


def test_classes_count_alike(plain: str, tmp_path: Path) -> None:  # noqa: F811
    images, labels = bars.bars(96)
    kept = np.flatnonzero((labels != 1) | (np.arange(96) % 4 == 0))[:64]
    arrays = {"x_train": images[kept], "y_train": labels[kept], "x_test": images, "y_test": labels}
    np.savez(tmp_path / "bars.npz", **arrays)
    recipe = bars.recipe(
        model=plain,
        epochs=1,
        batch_size=64,
        learning_rate=1e-12,
        label_smoothing=0.0,
        weight_decay=0.0,
        augmentation=Augmentation(),
        class_weights="balanced",
    )
    dataset = load_dataset(tmp_path / "bars.npz")
    begin(dataset, tmp_path / "run", recipe)
    logits = np.asarray(
        load_network(tmp_path / "run").predict_on_batch(((images[kept][..., None] / 255 - 0.5) / 0.5).astype("float32"))
    )
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(64), labels[kept]]
    by_class = [losses[labels[kept] == label].mean() for label in range(3)]
    assert len({(labels[kept] == label).sum() for label in range(3)}) > 1
    assert Workspace(tmp_path / "run").read_metrics()[0]["loss"] == pytest.approx(np.mean(by_class), rel=1e-4)


@pytest.mark.once
def test_a_training_that_knows_no_more_than_chance_says_so(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [0.3, 0.1, 1 / 3, 0.2]

    def evaluate(*arguments: Any, **options: Any) -> Evaluation:
        return replace(evaluation.evaluate(*arguments, **options), top1=left.pop(0))

    monkeypatch.setattr(distribution, "evaluate", evaluate)
    seen = list[Event]()
    begin(bars.dataset(tmp_path), tmp_path / "run", bars.recipe(epochs=4), observer=seen.append)
    said = (
        "3 epochs have taught nothing: 33.33% of the test images at best, where chance is 33.33%; look at the labels "
        "and at the learning rate"
    )
    assert [str(event) for event in seen if isinstance(event, Noted)].count(said) == 1
    left[:] = [0.3, 0.34, 0.1]
    begin(bars.dataset(tmp_path), tmp_path / "other", bars.recipe(epochs=3), observer=seen.append)
    assert [str(event) for event in seen if isinstance(event, Noted)].count(said) == 1


@pytest.mark.once
def test_recipes_without_these_settings_are_as_they_were() -> None:
    new = ("freeze", "class_weights", "layer_decay")
    older = recipe_of({name: value for name, value in bars.RECIPE.as_dict().items() if name not in new})
    assert older == bars.RECIPE
