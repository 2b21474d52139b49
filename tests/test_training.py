"""A training from its plan to its folder: what is left, how it stops, and how it goes on."""

import io
import json
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from groupwise import models
from groupwise.cli.watching import ConsoleObserver
from groupwise.data import Dataset, ImageBatches, load_dataset
from groupwise.data.record import record_of
from groupwise.errors import UserError
from groupwise.inference import load_network, predict_images
from groupwise.inference.evaluation import evaluation_of
from groupwise.interruption import Interrupted
from groupwise.training import RunSummary, extend_plan, make_plan, read_plan, train
from groupwise.training.plan import Plan, build_network, default_recipe
from groupwise.training.stopped import Diverged
from groupwise.training.workspace import Workspace
from groupwise.writing import write_text
from tests import tiny as bars

tiny = bars.tiny


class CtrlC(io.StringIO):
    """A console's file that presses Ctrl-C when a text has been written to it."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self._after = after

    def write(self, text: str) -> int:
        if self._after in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def _train(dataset: Dataset, folder: Path, recipe: Any = bars.RECIPE, file: Any = None) -> RunSummary:
    plan = make_plan(dataset, "bars.npz", recipe)
    return train(plan, dataset, folder, observer=ConsoleObserver(Console(file=file or io.StringIO(), width=200)))


def _resume(dataset: Dataset, folder: Path) -> RunSummary:
    return train(read_plan(folder), dataset, folder, resume=True, observer=ConsoleObserver(Console(file=io.StringIO())))


def test_a_run_leaves_all_there_is_to_know(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    summary = _train(dataset, tmp_path / "run", bars.recipe(epochs=10))
    assert summary.test_accuracy > 0.6
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *(
            "recipe.json",
            "split.json",
            "environment.json",
            "metrics.csv",
            "checkpoints",
            "last.keras",
            "best.keras",
            "curves.png",
            "report.html",
            "summary.json",
        )
    }
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] == summary.test_accuracy
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["backend"] == keras.backend.backend()
    assert environment["versions"]["keras"] == keras.__version__
    assert "command" not in environment  # in a notebook it would be the kernel's
    rows = Workspace(tmp_path / "run").read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, 11))
    for row in rows:  # 96 images in batches of 16
        assert row["images_per_second"] * row["seconds"] == pytest.approx(96, rel=1e-4)
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    assert rows[-1]["learning_rate"] < 0.01 < rows[2]["learning_rate"]
    assert rows[-1]["test_accuracy"] == pytest.approx(summary.test_accuracy, abs=1e-5)
    network = load_network(tmp_path / "run")
    assert network.metadata["class_names"] == ["0", "1", "2"]
    assert network.metadata["preprocessing"]["mean"] == [0.5]
    with pytest.raises(UserError, match="already holds another run: choose another output, or add resume=True"):
        _train(dataset, tmp_path / "run")
    # Its weights are where another training may begin.
    plan = make_plan(dataset, "x", bars.recipe(epochs=1, learning_rate=1e-6), weights=str(tmp_path / "run"))
    second = train(plan, dataset, tmp_path / "second", observer=ConsoleObserver(Console(file=io.StringIO())))
    assert second.test_accuracy == pytest.approx(summary.test_accuracy, abs=0.1)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tiny: str, tmp_path: Path) -> None:
    recipe = bars.recipe(model_arguments={"dropout": 0.2}, average=0.9, optimizer="adamw", optimizer_options={})
    dataset = bars.dataset(tmp_path)
    whole = _train(dataset, tmp_path / "whole", recipe)
    with pytest.raises(Interrupted, match=r"after epoch 2 of 4$") as stopped:
        _train(dataset, tmp_path / "parts", recipe, CtrlC("epoch 2/4"))
    assert stopped.value.resumable
    assert (tmp_path / "parts" / "curves.png").exists()
    parts = _resume(dataset, tmp_path / "parts")
    for one, other in zip(
        bars.weights(tmp_path / "whole" / "last.keras"), bars.weights(tmp_path / "parts" / "last.keras"), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert parts.test_loss == pytest.approx(whole.test_loss, rel=1e-4)
    assert [row["epoch"] for row in Workspace(tmp_path / "parts").read_metrics()] == [1, 2, 3, 4]
    assert _resume(dataset, tmp_path / "parts").test_accuracy == parts.test_accuracy  # nothing is left to do


def test_a_run_killed_in_its_first_epoch_begins_again_from_its_weights(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    _train(dataset, tmp_path / "first", bars.recipe(epochs=1))
    plan = make_plan(dataset, "x", bars.recipe(epochs=1), weights=str(tmp_path / "first"))
    whole = train(plan, dataset, tmp_path / "run", observer=ConsoleObserver(Console(file=io.StringIO())))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for name in ("last.keras", "best.keras", "metrics.csv", "summary.json", "curves.png"):
        (tmp_path / "run" / name).unlink()
    assert _resume(dataset, tmp_path / "run").test_loss == pytest.approx(whole.test_loss, rel=1e-4)


def _go_on(dataset: Dataset, folder: Path, epochs: int, restart: bool = False, file: Any = None) -> RunSummary:
    finished = len(Workspace(folder).read_metrics())
    plan = extend_plan(read_plan(folder), finished, epochs, restart)
    return train(plan, dataset, folder, resume=True, observer=ConsoleObserver(Console(file=file or io.StringIO())))


def _rates(folder: Path) -> list[float]:
    return [row["learning_rate"] for row in Workspace(folder).read_metrics()]


def test_a_finished_run_goes_on_as_if_it_had_been_planned_so(tiny: str, tmp_path: Path) -> None:
    changes = {"model_arguments": {"dropout": 0.2}, "average": 0.9, "optimizer": "adamw", "optimizer_options": {}}
    recipe = bars.recipe(**changes, schedule="constant", warm_up=0.0)
    dataset = bars.dataset(tmp_path)
    whole = _train(dataset, tmp_path / "whole", recipe)
    _train(dataset, tmp_path / "parts", replace(recipe, epochs=2))
    first = Workspace(tmp_path / "parts").read_metrics()
    parts = _go_on(dataset, tmp_path / "parts", 4)
    for one, other in zip(
        bars.weights(tmp_path / "whole" / "last.keras"), bars.weights(tmp_path / "parts" / "last.keras"), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    rows = Workspace(tmp_path / "parts").read_metrics()
    assert rows[:2] == first
    assert (len(rows), parts.epochs, read_plan(tmp_path / "parts").recipe.epochs) == (4, 4, 4)
    assert parts.best_epoch == whole.best_epoch
    assert json.loads((tmp_path / "parts" / "summary.json").read_text())["epochs"] == 4


def test_the_rate_beyond_the_end_is_continued_or_begun_anew(tiny: str, tmp_path: Path) -> None:
    """A cosine with warm-up: what the rates must be, other runs of as many epochs tell."""
    dataset = bars.dataset(tmp_path)
    _train(dataset, tmp_path / "two", bars.recipe(epochs=2))
    _train(dataset, tmp_path / "four", bars.recipe(epochs=4))
    two, four = _rates(tmp_path / "two"), _rates(tmp_path / "four")
    for name in ("continued", "anew"):
        shutil.copytree(tmp_path / "two", tmp_path / name)
    _go_on(dataset, tmp_path / "continued", 4)
    assert _rates(tmp_path / "continued") == [*two, *four[2:]]
    assert four[2] > 0.01
    with pytest.raises(Interrupted, match="after epoch 3 of 4"):
        _go_on(dataset, tmp_path / "anew", 4, restart=True, file=CtrlC("epoch 3/4"))
    assert not (tmp_path / "anew" / "summary.json").exists()  # of another end
    assert _resume(dataset, tmp_path / "anew").epochs == 4
    assert _rates(tmp_path / "anew") == [*two, *two]
    # A third end, of a run that was begun anew once; and an earlier one than was planned.
    with pytest.raises(Interrupted):
        _go_on(dataset, tmp_path / "anew", 7, file=CtrlC("epoch 5/7"))
    assert _go_on(dataset, tmp_path / "anew", 6).epochs == 6
    assert _rates(tmp_path / "anew")[5] == four[3]
    for arguments, says in (
        ((5,), "epochs=5: the run has finished 6 epochs: they can become more, not fewer"),
        ((6, True), "restart=True: none of the run's 6 epochs is left: ask for more with epochs"),
    ):
        with pytest.raises(UserError, match=says):
            _go_on(dataset, tmp_path / "anew", *arguments)


@pytest.mark.once
def test_a_folder_is_one_training_s_and_what_a_killed_one_left_is_no_obstacle(tiny: str, tmp_path: Path) -> None:
    dataset, folder = bars.dataset(tmp_path), Workspace(tmp_path / "run")
    first = _train(dataset, tmp_path / "first", bars.recipe(epochs=10))
    with folder.at_work(), pytest.raises(UserError, match=r"another training is at work in .*run: wait for its end"):
        _train(dataset, folder.path)
    assert not folder.path.exists()
    folder.path.mkdir()
    for name in (".lock", ".partial-0123abcd.keras"):
        (folder.path / name).write_text("half a mod")
    plan = make_plan(dataset, "x", bars.recipe(epochs=1, learning_rate=1e-6), weights=str(tmp_path / "first"))
    folder.open(resume=False)
    # It was killed in its first epoch: what it was to start from is still where it starts.
    folder.write_json(folder.split, record_of(dataset).as_dict())
    folder.write_json(folder.recipe, plan.as_dict())
    second = _resume(dataset, folder.path)
    assert second.test_accuracy == pytest.approx(first.test_accuracy, abs=0.1)
    assert not any(path.name.startswith(".") for path in folder.path.iterdir())
    assert (tmp_path / "first" / "last.keras").exists()


@pytest.mark.once
def test_a_console_or_a_disk_that_is_full_does_not_lose_a_run(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("epoch"):
                raise OSError(28, "No space left on device")
            return super().write(text)

    dataset = bars.dataset(tmp_path)

    def full(path: Path, text: str) -> None:
        if path.name == "summary.json":
            raise UserError(f"{path} cannot be written: no space left on device")
        write_text(path, text)

    monkeypatch.setattr("groupwise.training.workspace.write_text", full)
    with pytest.raises(UserError, match=r"summary.json cannot be written: .*holds the training after epoch 2"):
        _train(dataset, tmp_path / "run", bars.recipe(epochs=2), Full())
    monkeypatch.undo()
    monkeypatch.setitem(models.variants(), "tiny", bars.VARIANT)
    assert _resume(dataset, tmp_path / "run").epochs == 2


@pytest.mark.once
@pytest.mark.parametrize("name", ["split.json", "environment.json", "best.keras", "metrics.csv", "last.keras"])
def test_a_disk_that_is_full_while_first_saving_is_said(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    counts: Counter[str] = Counter()
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        counts[target.name] += 1
        if target.name == name and counts[name] == 1:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    dataset, folder = bars.dataset(tmp_path), Workspace(tmp_path / "run")
    with pytest.raises(UserError, match=f"{name} cannot be written: no space left on device"):
        _train(dataset, folder.path, bars.recipe(epochs=3))
    assert not folder.path.exists()
    assert _train(dataset, folder.path, bars.recipe(epochs=1)).epochs == 1


def test_a_loss_that_is_not_a_number_keeps_the_last_good_model(tiny: str, tmp_path: Path, monkeypatch: Any) -> None:
    dataset = bars.dataset(tmp_path)
    original = ImageBatches.__getitem__

    def spoil(batches: ImageBatches, index: int) -> Any:
        images, labels = original(batches, index)
        return (images * np.float32(np.nan) if batches.epoch >= 2 else images), labels

    monkeypatch.setattr(ImageBatches, "__getitem__", spoil)
    with pytest.raises(Diverged, match=r"became .* in epoch 3.*; .*000012.safetensors holds .* after epoch 2 of 4"):
        _train(dataset, tmp_path / "run")
    assert all(np.isfinite(weight).all() for weight in bars.weights(tmp_path / "run" / "last.keras"))


def test_a_rate_that_is_far_too_high_leaves_nothing(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="smaller rate: learning_rate=2e"):
        _train(bars.dataset(tmp_path), tmp_path / "run", bars.recipe(learning_rate=1e30, warm_up=0.0))
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_a_picture_that_cannot_be_drawn_hides_no_interruption(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Workspace) -> None:
        raise ImportError("half imported")

    monkeypatch.setattr("groupwise.training.ending._draw_curves", fail)
    with pytest.raises(Interrupted, match=r"after epoch 2 of 4$"):
        _train(bars.dataset(tmp_path), tmp_path / "run", file=CtrlC("epoch 2/4"))


def test_validation_images_choose_the_best_model(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path, with_validation=True)
    summary = _train(dataset, tmp_path / "run", bars.recipe(epochs=2, average=0.5))
    assert summary.judged_by == "validation"
    assert "validation_accuracy" in Workspace(tmp_path / "run").read_metrics()[0]
    # The file holds the weights that were tested: the averaged ones.
    network = load_network(tmp_path / "run")
    images = np.stack([dataset.test.read(index) for index in range(len(dataset.test))])
    logits = np.asarray(network.predict_on_batch(((images / 255 - 0.5) / 0.5).astype("float32")))
    assert evaluation_of(logits, dataset.test.labels).top1 == summary.test_accuracy


@pytest.mark.once
def test_a_folder_with_something_in_it_is_refused(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="already holds other files"):
        _train(dataset, tmp_path / "full")
    with pytest.raises(UserError, match="holds no run to resume"):
        _resume(dataset, tmp_path / "full")
    with pytest.raises(UserError, match="is a file"):
        _train(dataset, tmp_path / "full" / "thesis.txt")


@pytest.mark.once
def test_broken_images_are_named_and_counted_and_many_stop_the_training(tiny: str, tmp_path: Path) -> None:
    root = bars.write_folder(tmp_path / "bars")
    files = sorted((root / "train").rglob("*.png"))
    files[0].write_bytes(b"")
    sorted((root / "test").rglob("*.png"))[0].write_text("a text")
    # Batches of one image, and so one of the test without any.
    summary = _train(load_dataset(root), tmp_path / "run", bars.recipe(epochs=1, batch_size=1))
    assert [name for name, _ in summary.broken_images] == ["train/across/000.png", "test/across/000.png"]
    assert summary.test_images == 29
    for file in files[1:12]:
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match="12 of 111 images are broken, more than the 10 that are skipped"):
        _train(load_dataset(root), tmp_path / "other", bars.recipe(epochs=1))
    assert not (tmp_path / "other").exists()


@pytest.mark.once
def test_the_image_size_is_the_data_s_or_the_network_s(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    assert make_plan(dataset, "x", bars.RECIPE).image_size == (8, 8)
    assert make_plan(dataset, "x", bars.recipe(image_size=(4, 12))).image_size == (4, 12)
    assert make_plan(replace(dataset, image_size=(9, 9)), "x", bars.RECIPE).image_size == (8, 8)
    assert make_plan(replace(dataset, image_size=None), "x", bars.RECIPE).image_size == (8, 8)
    assert default_recipe(dataset) == "digits"
    assert default_recipe(replace(dataset, channels=3)) == "cifar10"
    assert default_recipe(replace(dataset, image_size=None)) == "photos"


@pytest.mark.once
@pytest.mark.parametrize(("size", "crop"), [((8, 8), 1.0), ((9, 9), 0.875), (None, 0.875)])
def test_nothing_is_cut_off_images_of_the_networks_size(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None, crop: float
) -> None:
    photos = replace(bars.VARIANT, preprocessing=replace(bars.VARIANT.preprocessing, crop=0.875))
    monkeypatch.setitem(models.variants(), "tiny", photos)
    plan = make_plan(replace(bars.dataset(tmp_path), image_size=size), "x", bars.RECIPE)
    assert build_network(plan).metadata["preprocessing"]["crop"] == crop
    assert Plan.of(json.loads(json.dumps(plan.as_dict()))) == plan


@pytest.mark.once
def test_jpegs_are_predicted_at_their_full_size(tiny: str, tmp_path: Path) -> None:
    network = models.create("tiny")
    network.metadata["class_names"] = ["a", "b", "c"]
    jpeg, png = tmp_path / "a.jpg", tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (90, 70), np.uint8)
    Image.fromarray(noise).save(jpeg)
    Image.open(jpeg).save(png)
    one, other = (p.probabilities for p in predict_images(network, [jpeg, png], pytest.fail))
    np.testing.assert_array_equal(one, other)
