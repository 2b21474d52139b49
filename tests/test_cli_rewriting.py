"""`groupwise accelerate` and `groupwise factorize`, as a user types them."""

import re
from pathlib import Path

import keras
import pytest
from keras import layers

from groupwise import models
from groupwise.cli import main
from tests import tiny as small
from tests.rewriting import assert_same, disturbed, resnext_block

tiny = small.tiny


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """A saved model of Keras's own layers."""
    inputs = keras.Input((8, 8, 12))
    model = disturbed(keras.Model(inputs, layers.GlobalAveragePooling2D()(resnext_block(inputs, 12, 3, "one"))))
    model.save(tmp_path / "stock.keras")
    return tmp_path / "stock.keras"


def test_accelerate_reports_measures_and_saves(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(["accelerate", str(stock), "--output", str(tmp_path / "fast.keras"), "--measure", "--batch-size", "2"])
        == 0
    )
    said = capsys.readouterr().out
    assert re.search(r"one_spatial +Conv2D, 3 groups +GroupedConv2D", said)
    assert re.search(r"speed +inference [\d.]+ times as fast, a training step [\d.]+ times \(batch 2\)", said)
    assert_same(*(keras.saving.load_model(path) for path in (stock, tmp_path / "fast.keras")))


def test_accelerate_folds(stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["accelerate", str(stock), "--fold", "--output", str(tmp_path / "folded.keras")]) == 0
    assert "moving statistics have become weights" in capsys.readouterr().out
    folded = keras.saving.load_model(tmp_path / "folded.keras")
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    assert_same(keras.saving.load_model(stock), folded)


def test_factorize_says_what_is_saved_and_lost(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = models.create(tiny)
    network.metadata["class_names"] = ["0", "1", "2"]
    network.save(tmp_path / "tiny.keras")
    data = small.write_npz(tmp_path / "bars.npz")
    arguments = ["factorize", str(tmp_path / "tiny.keras"), "--rank", "1", "--data", str(data), "--batch-size", "16"]
    output = tmp_path / "factorized.keras"
    assert main([*arguments, "--finetune-epochs", "12", "--learning-rate", "0.2", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "relative error" in said
    assert "MACs for one image" in said
    before, tuned = (re.search(rf"{name} +([\d.]+)%", said) for name in ("before", "tuned"))
    assert before is not None
    assert tuned is not None
    # The weights were random: the last layer is grouped, but the training tells bars apart.
    assert float(tuned[1]) > float(before[1])
    assert main(["evaluate", str(output), str(data)]) == 0
    assert f"top-1 {tuned[1]}%" in capsys.readouterr().out


def test_a_fine_tuning_that_diverges_writes_nothing(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = models.create(tiny)
    network.metadata["class_names"] = ["0", "1", "2"]
    network.save(tmp_path / "tiny.keras")
    data, output = small.write_npz(tmp_path / "bars.npz"), tmp_path / "factorized.keras"
    arguments = ["factorize", str(tmp_path / "tiny.keras"), "--data", str(data), "--output", str(output)]
    assert main([*arguments, "--finetune-epochs", "2", "--learning-rate", "1e30"]) == 1
    assert "became" in (said := capsys.readouterr().err)
    assert "nothing was written. Begin again with a smaller rate: --learning-rate 2e+29" in said
    assert not output.exists()


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["accelerate", "nothing.keras"], "nothing.keras does not exist"),
        (["accelerate", "STOCK", "--output", "fast.h5"], "must end in .keras"),
        (["accelerate", "STOCK", "--output", "nowhere/fast.keras"], "there is no folder nowhere"),
        (["factorize", "STOCK", "--finetune-epochs", "2"], "name the images with --data"),
        (["factorize", "STOCK", "--learning-rate", "nan"], "--learning-rate nan: must be positive and finite"),
        (["factorize", "STOCK", "--learning-rate", "inf"], "--learning-rate inf: must be positive and finite"),
        (["factorize", "STOCK", "--layers", "two*"], "--layers two*: no layer has such a name"),
        (["factorize", "STOCK", "--data", "digits"], "has no class names and preprocessing"),
    ],
)
def test_wrong_arguments(stock: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([str(stock) if argument == "STOCK" else argument for argument in arguments]) == 2
    assert message in capsys.readouterr().err
