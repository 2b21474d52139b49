"""`groupwise train --set`: any setting of a recipe, checked by its rules."""

import json
from pathlib import Path
from typing import Any

import pytest

from groupwise.cli.options import parse_settings
from groupwise.errors import UserError
from tests import tiny as bars
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

pytestmark = pytest.mark.once

tiny = bars.tiny


def test_settings_are_nested_as_a_recipe_is() -> None:
    texts = ["epochs=4", "optimizer=adamw", "augmentation.flip=true", "augmentation.erase=0.5", "image_size=[8, 16]"]
    assert parse_settings(texts) == {
        "epochs": 4,
        "optimizer": "adamw",
        "augmentation": {"flip": True, "erase": 0.5},
        "image_size": [8, 16],
    }
    assert parse_settings(["augmentation=3", "augmentation.flip=true"]) == {"augmentation": {"flip": True}}
    assert parse_settings(None) == {}


@pytest.fixture
def data(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.chdir(tmp_path)
    bars.write_npz(tmp_path / "bars.npz")
    return "train", "bars.npz", "--model", tiny, "--recipe", "digits"


def test_what_is_set_is_trained_and_kept(data: tuple[str, ...], capsys: Any) -> None:
    settings = [
        "epochs=1",
        "batch_size=32",
        "optimizer_options.beta_1=0.8",
        "augmentation.mixup=0.1",
        "learning_rate=1",
    ]
    chosen = [word for text in settings for word in ("--set", text)]
    code, output, errors = run(capsys, *data, *chosen, "--dtype", "auto", "--output", "run")
    assert (code, errors) == (0, "")
    assert "1 epoch, batches of 32, adamw, learning rate up to 1" in output
    recipe = json.loads(Path("run/recipe.json").read_text())["recipe"]
    assert recipe["optimizer_options"] == {"beta_1": 0.8}
    assert (recipe["augmentation"]["mixup"], recipe["augmentation"]["crop_padding"]) == (0.1, 1)
    # The same command line goes on, to another end too; another setting does not.
    again = (*data, "--dtype", "auto", "--output", "run", "--resume", "auto")
    assert run(capsys, *again, *chosen)[0] == 0
    assert "epoch 2/2" in run(capsys, *again, *chosen, "--set", "epochs=2")[1]
    said = refusal(capsys, *again, "--set", "augmentation.mixup=0.2")
    assert "--set augmentation cannot be changed by --resume: the run in run goes on as it began" in said
    assert "epochs = 'ten': must be an integer" in refusal(capsys, *again, "--set", "epochs=ten")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "weight_decai=0.1"], "unknown setting 'weight_decai'; did you mean weight_decay?"),
        (["--set", "augmentation.flipp=1"], "augmentation: unknown setting 'flipp'; did you mean flip?"),
        (["--set", "warm_up=2"], "warm_up = 2.0: is a share of the steps"),
        (["--set", "schedule=cosin"], "schedule = 'cosin': must be 'cosine' or 'linear' or 'constant'"),
        (["--set", "epochs.more=1"], "epochs = {'more': 1}: must be an integer"),
        (["--set", f"learning_rate={10**400}"], "must be a number"),
        (["--set", "epochs"], "--set epochs: must be NAME=VALUE, such as weight_decay=0.01 or augmentation.flip=true"),
        (["--set", "model=tiny"], "--set model=tiny: the network is named with --model"),
        (["--set", "epochs=3", "--epochs", "4"], "--set epochs: --epochs sets it, too; name it once"),
        (["--set", "optimizer_options.momentum=1"], "optimizer 'adamw' takes no 'momentum'"),
    ],
)
def test_what_cannot_be_set_is_refused(arguments: list[str], message: str, data: tuple[str, ...], capsys: Any) -> None:
    assert message in refusal(capsys, *data, *arguments)
    assert not Path("runs").exists()


def test_another_optimizer_does_not_get_the_options_of_the_recipe_s(data: tuple[str, ...], capsys: Any) -> None:
    settings = ("--set", "optimizer=adam", "--epochs", 1, "--output", "run")
    assert run(capsys, "train", "bars.npz", "--model", "tiny", "--recipe", "cifar10", *settings)[0] == 0
    recipe = json.loads(Path("run/recipe.json").read_text())["recipe"]
    assert (recipe["optimizer"], recipe["optimizer_options"]) == ("adam", {})


def test_a_table_s_other_settings_stay() -> None:
    changed = bars.RECIPE.with_settings({"augmentation": {"erase": 0.5}, "optimizer_options": {"momentum": 0.5}})
    assert (changed.augmentation.erase, changed.augmentation.flip) == (0.5, True)
    assert changed.optimizer_options == {"momentum": 0.5, "nesterov": True}
    with pytest.raises(UserError, match="accumulate = 3: must divide batch_size=16"):
        bars.RECIPE.with_settings({"accumulate": 3})
