"""`groupwise diagnose`, as a user types it."""

import json
from pathlib import Path

import keras
import pytest

from groupwise.cli import main
from tests.test_diagnosis import mission


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A saved network that stays at chance."""
    mission().save(tmp_path / "separable.keras")
    return tmp_path / "separable.keras"


@pytest.mark.shared
def test_diagnose_says_what_is_wrong_and_mends_it(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mended = tmp_path / "mended.keras"
    assert main(["diagnose", str(model), "digits", "--apply", str(mended), "--batch-norm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.partition(". ")[2] for line in lines if line[:1].isdigit()]
    assert names[0] == "pointwise kernel of one channel"
    assert set(names[1:]) == {"depthwise fan-in", "separable without normalisation"}
    assert lines[2].startswith("   -> Leave them trainable, and initialise them at random")
    assert "mended   7 layers" in lines
    assert lines[-1].startswith("trained  ")
    assert isinstance(keras.saving.load_model(mended).layers[3], keras.layers.BatchNormalization)
    assert main(["diagnose", str(mended), "digits"]) == 0
    assert capsys.readouterr().out == "separable: nothing was found that keeps it from learning\n"


def test_labels_are_as_the_compiled_loss_wants_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = mission()
    network.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    network.save(tmp_path / "compiled.keras")
    assert main(["diagnose", str(tmp_path / "compiled.keras"), "digits", "--json"]) == 0
    said = capsys.readouterr()
    assert "gradients were not looked at" not in said.err
    assert any(row["gradient"] for row in json.loads(said.out)["layers"])


def test_diagnose_as_json_without_data(model: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["diagnose", str(model), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == "separable"
    first = said["findings"][0]
    assert (first["name"], first["weight"], first["value"]) == ("pointwise kernel of one channel", "stops", 1.0)
    assert len(first["where"]) == 4
    layer = next(row for row in said["layers"] if row["kind"] == "DepthwiseConv2D")
    assert layer["fan_in"] == 9


def test_a_run_is_diagnosed_by_its_metrics(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mission().save(tmp_path / "last.keras")
    rows = ["epoch,accuracy,test_accuracy", "1,0.3,0.1", "2,0.95,0.11"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows), encoding="utf-8")
    assert main(["diagnose", str(tmp_path), "--layers"]) == 0
    out = capsys.readouterr().out
    assert "the training accuracy rose to 95.0%, and the test accuracy never passed 11.0%" in out
    assert "gradient/weights" in out


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{model}", "--batch-norm"], "--batch-norm: belongs to --apply"),
        (["{model}", "--apply", "{model}"], "is the model that is read"),
        (["{model}", "--apply", "a.h5"], "--apply a.h5: must end in .keras"),
        (["{model}", "--learning-rate", "0"], "--learning-rate 0.0: must be positive"),
        (["nothing.keras"], "nothing.keras does not exist"),
        (["{model}", "nothing"], "nothing"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], says: str, model: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    assert main(["diagnose", *(text.format(model=model) for text in arguments)]) == 2
    assert says in capsys.readouterr().err
