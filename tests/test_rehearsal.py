"""`groupwise train --dry-run`: what a training will take, and nothing of it."""

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import keras
import numpy as np
import pytest
from PIL import Image

from groupwise import models
from groupwise.data import Augmentation
from groupwise.data.dataset import SplitRule
from groupwise.errors import UserError
from groupwise.training import Distribution, make_plan, rehearsal, rehearse
from groupwise.training.optimizers import make_optimizer
from tests import tiny as bars
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny


def test_it_says_what_a_training_will_take(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope = create_autospec(Distribution.scope, side_effect=Distribution.scope)
    monkeypatch.setattr(Distribution, "scope", scope)
    dataset = bars.dataset(tmp_path)
    recipe = bars.recipe(batch_size=32, accumulate=2, validation=0.3, average=0.9)
    found = rehearse(make_plan(dataset, "bars.npz", recipe), dataset, observer=lambda _: None)
    assert (found.step_images, found.image_shape, found.classes, found.epochs) == (16, (8, 8, 1), 3, 4)
    assert found.steps == len(dataset.with_validation(SplitRule(0, 0.3)).train) // 32 * 2
    scope.assert_called_once()  # all devices compute
    assert found.first_seconds > 0
    assert found.step_seconds > 0
    network = models.create("tiny")
    optimizer = make_optimizer(recipe, 10, network)
    counts = [np.prod(v.shape) for v in (*network.variables, *network.trainable_variables, *optimizer.variables)]
    assert found.state_bytes == pytest.approx(4 * sum(counts), abs=8)  # a count of steps has 4 or 8 bytes
    assert found.parameters == network.count_params()
    outputs = sum(np.prod(layer.output.shape[1:]) for layer in network.layers)
    assert found.activation_bytes == pytest.approx(4 * 16 * outputs, rel=0.3)
    assert [path.name for path in tmp_path.iterdir()] == ["bars.npz"]


@pytest.mark.once
def test_the_command_draws_the_images_and_keeps_nothing(
    tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bars.write_npz(tmp_path / "bars.npz")
    settings = ("train", "bars.npz", "--model", tiny, "--recipe", "digits", "--batch-size", 32, "--learning-rate", 0.01)
    monkeypatch.setenv("RANK", "0")  # as torchrun does it
    monkeypatch.setenv("WORLD_SIZE", "1")
    code, output, errors = run(capsys, *settings, "--dry-run")
    assert (code, errors) == (0, "")
    assert "An epoch of 96 images is too short for batches of 32" in output
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert lines["step"] == "images 32x8x8x1 to 32x3 logits"
    assert " for an epoch of 3 steps" in lines["time"]
    assert lines["picture"] == "runs/bars-tiny-dry-run.png"
    assert [path.name for path in Path("runs").iterdir()] == [Path(lines["picture"]).name]
    with Image.open(lines["picture"]) as picture:
        assert picture.size[0] > 500
    assert "--dry-run: is of a new run; leave out --resume" in refusal(
        capsys, *settings, "--output", "run", "--resume", "--dry-run"
    )
    where = ("--coordinator", "localhost:12345", "--processes", 2, "--process", 0)
    assert "--dry-run: is of one process" in refusal(capsys, *settings, *where, "--dry-run")


@pytest.mark.once
def test_a_picture_names_what_is_mixed(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from groupwise import report

    drawn: list[Any] = []
    monkeypatch.setattr(report, "batch", lambda images, names, path: drawn.append((images, names)))
    dataset = bars.dataset(tmp_path)
    for augmentation in (Augmentation(), Augmentation(mixup=0.4)):
        plan = make_plan(dataset, "bars.npz", bars.recipe(label_smoothing=0.1, augmentation=augmentation, model=tiny))
        rehearse(plan, dataset, tmp_path / "none.png", observer=lambda _: None)
    (plain, names), (_, mixed) = drawn
    originals = {dataset.train.read(index).tobytes(): str(dataset.train.labels[index]) for index in range(96)}
    assert names == [originals[image.tobytes()] for image in plain]
    assert any("%" in name for name in mixed)
    assert rehearsal._named(np.array([0.1, 0.6, 0.3], "float32"), ["a", "b", "c"]) == "b 71%, c 29%"


@pytest.mark.once
def test_weights_that_do_not_fit_are_refused(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    other = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    other.save(tmp_path / "other.keras")
    with pytest.raises(UserError):
        rehearse(make_plan(dataset, "bars.npz", bars.RECIPE, weights=str(tmp_path / "other.keras")), dataset)
