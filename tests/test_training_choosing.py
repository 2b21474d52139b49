"""Who chooses the best model, and when a training ends that gets no better."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.data import Dataset, load_dataset
from groupwise.data.dataset import SplitRule
from groupwise.data.record import SplitRecord
from groupwise.errors import UserError
from groupwise.inference import evaluation
from groupwise.inference.evaluation import Evaluation
from groupwise.inference.recorded import divide_for, read_record
from groupwise.recipes import recipe_of
from groupwise.training import distribution, extend_plan, make_plan, read_plan, train
from groupwise.training.events import EpochEnded, Event, Finished, Noted
from groupwise.training.workspace import Workspace
from tests import tiny as bars
from tests.test_checkpoints import assert_same_end, begin, resume
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny
PATIENT = bars.recipe(epochs=6, patience=2)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no epoch be better than the first."""

    def evaluate(*arguments: Any, **options: Any) -> Evaluation:
        return replace(evaluation.evaluate(*arguments, **options), top1=0.5)

    monkeypatch.setattr(distribution, "evaluate", evaluate)


def identities(dataset: Dataset) -> dict[str, set[int]]:
    splits = {side: getattr(dataset, side) for side in ("train", "validation", "test")}
    return {side: set(split.identities().tolist()) for side, split in splits.items() if split is not None}


def recorded(folder: Path) -> SplitRecord:
    record = read_record(folder)
    assert record is not None
    return record


@pytest.mark.once
@pytest.mark.parametrize("has_test", [False, True])
def test_a_share_of_the_training_images_is_set_aside_for_validation(has_test: bool, tmp_path: Path) -> None:
    if has_test:
        whole = load_dataset(bars.write_folder(tmp_path / "bars", train=300))
    else:
        whole = load_dataset(bars.write_classes(tmp_path / "bars", range(125)))
    divided = whole.with_validation(SplitRule(0, 0.2))
    before, after = identities(whole), identities(divided)
    assert after["test"] == before["test"]
    assert after["train"] | after["validation"] == before["train"]
    assert not after["train"] & after["validation"]
    assert len(after["validation"]) / len(before["train"]) == pytest.approx(0.2, abs=0.05)
    assert set(divided.validation.labels) == {0, 1, 2}  # type: ignore[union-attr]
    assert identities(whole.with_validation(SplitRule(0, 0.2))) == after
    assert identities(whole.with_validation(SplitRule(1, 0.2))) != after
    # Trained images are not set aside, and where none is left that is said.
    trained = np.array(sorted(after["train"]), np.uint64)
    others = whole.with_validation(SplitRule(1, 0.5), trained)
    assert identities(others)["validation"] <= after["validation"]
    with pytest.raises(UserError, match="none of the images of bars is left for validation"):
        whole.with_validation(SplitRule(0, 0.2), np.array(sorted(before["train"]), np.uint64))
    if not has_test:
        assert divided.divided(SplitRule(0, 0.5)).validation is None


@pytest.mark.once
@pytest.mark.parametrize("has_test", [False, True])
def test_a_run_keeps_to_the_images_that_it_set_aside(has_test: bool, tiny: str, tmp_path: Path) -> None:
    root = tmp_path / "bars"
    if has_test:
        bars.write_folder(root, train=90)
    else:
        bars.write_classes(root, range(40))
    summary = begin(load_dataset(root), tmp_path / "run", bars.recipe(epochs=1, validation=0.3))
    assert summary.judged_by == "validation"
    assert "validation_accuracy" in Workspace(tmp_path / "run").read_metrics()[0]
    record = recorded(tmp_path / "run")
    assert record.validation_rule == SplitRule(0, 0.3)
    began = {side: set(images.tolist()) for side, images in record.images.items()}
    # The data grow, and the run goes on with what it had.
    if has_test:
        bars.write_folder(root, train=120)
    else:
        bars.write_classes(root, range(40, 50))
    seen: list[Event] = []
    plan = extend_plan(read_plan(tmp_path / "run"), 1, 2)
    dataset, _ = divide_for(load_dataset(root), tmp_path / "run")
    train(plan, dataset, tmp_path / "run", resume=True, observer=seen.append)
    assert {side: set(images.tolist()) for side, images in recorded(tmp_path / "run").images.items()} == began
    assert any("30 images were added to bars since: left out" in str(event) for event in seen)
    # What comes after it is judged by none of the images that it has learnt from.
    again = make_plan(load_dataset(root), "x", bars.recipe(epochs=1, validation=0.3), weights=str(tmp_path / "run"))
    train(again, dataset, tmp_path / "second", observer=seen.append)
    assert not set(recorded(tmp_path / "second").images["validation"].tolist()) & began["train"]


@pytest.mark.once
def test_who_chose_the_best_model_is_said(tiny: str, tmp_path: Path) -> None:
    seen: list[Event] = []
    own = bars.dataset(tmp_path, with_validation=True)
    begin(own, tmp_path / "own", bars.recipe(epochs=1, validation=0.1), observer=seen.append)
    sets_aside = "bars.npz has images for validation of its own, which choose the best model: validation=0.1 sets no"
    assert any(sets_aside in str(event) for event in seen if isinstance(event, Noted))
    assert "of the validation images" in seen[-1].lines()[-2]
    assert recorded(tmp_path / "own").validation_rule is None
    summary = begin(bars.dataset(tmp_path), tmp_path / "none", bars.recipe(epochs=1), observer=seen.append)
    line = Finished(summary, tmp_path / "none").lines()[-2]
    assert line == (
        f"best.keras is epoch 1's, chosen by the test images: the {summary.best_accuracy:.2%} of them that it names "
        "rightly are no test accuracy (validation=0.1 sets other images aside to choose by)"
    )


def test_a_training_that_gets_no_better_ends(tiny: str, still: None, tmp_path: Path) -> None:
    dataset, folder, seen = bars.dataset(tmp_path), tmp_path / "run", list[Event]()
    summary = begin(dataset, folder, PATIENT, observer=seen.append)
    assert (summary.epochs, summary.best_epoch, summary.ended_by_patience) == (3, 1, True)
    notes = [str(event) for event in seen if isinstance(event, Noted)]
    assert "of the last 2 epochs none was better on the test images than epoch 1: the training ends" in notes
    assert "chosen by the test images, which also ended the training:" in seen[-1].lines()[-2]
    assert json.loads((folder / "summary.json").read_text())["ended_by_patience"]
    assert resume(dataset, folder).epochs == 3  # nothing is left to do
    plan = extend_plan(read_plan(folder), 3, patience=4)
    assert train(plan, dataset, folder, resume=True, observer=seen.append).epochs == 5
    plan = extend_plan(read_plan(folder), 5, patience=0)
    last = train(plan, dataset, folder, resume=True, observer=seen.append)
    assert (last.epochs, last.ended_by_patience) == (6, False)


def test_a_run_that_ran_out_of_patience_ends_as_one_that_was_resumed(tiny: str, still: None, tmp_path: Path) -> None:
    dataset, recipe = bars.dataset(tmp_path), replace(PATIENT, average=0.9)
    begin(dataset, tmp_path / "whole", recipe)

    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.epoch == 2:
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        begin(dataset, tmp_path / "parts", recipe, observer=stop)
    assert resume(dataset, tmp_path / "parts").epochs == 3
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.once
def test_the_command_sets_aside_and_has_patience(
    tiny: str, still: None, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bars.write_classes(Path("photos"), range(30))
    settings = (
        "--model",
        tiny,
        "--recipe",
        "digits",
        "--output",
        "run",
        "--validation",
        0.2,
        "--patience",
        1,
        "--epochs",
        5,
    )
    code, output, _ = run(capsys, "train", "photos", *settings)
    assert code == 0
    assert " for validation, " in output
    assert "the last epoch was not better on the validation images than epoch 1: the training ends" in output
    going_on = ("train", "photos", "--output", "run", "--resume")
    assert "--validation cannot be changed by --resume" in refusal(capsys, *going_on, "--validation", 0.3)
    code, output, _ = run(capsys, *going_on, "--patience", 2)
    assert code == 0
    assert "epoch 3/5" in output
    assert "epoch 4/5" not in output
    assert run(capsys, "evaluate", "run", "photos")[2] == ""
    assert "--validation 1.0: a share lies in 0 to 1" in refusal(capsys, "train", "photos", "--validation", 1.0)


@pytest.mark.once
def test_a_recipe_without_them_has_neither_a_share_nor_patience(tmp_path: Path) -> None:
    older = {name: value for name, value in PATIENT.as_dict().items() if name not in ("validation", "patience")}
    assert (recipe_of(older).validation, recipe_of(older).patience) == (0.0, 0)
    with pytest.raises(UserError, match="patience = -1: must not be negative"):
        recipe_of({**older, "patience": -1})
    empty = np.zeros(0, np.uint64)
    record = SplitRecord(None, {"train": empty, "test": empty}).as_dict()
    del record["validation_rule"]
    assert SplitRecord.of(record, "", "").validation_rule is None
