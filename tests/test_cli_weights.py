"""The command with published weights: convert them, predict with them, look where they look, and train from them."""

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from groupwise import models
from groupwise.cli import main
from groupwise.inference import load_network
from tests import tiny as bars
from tests.published import pytorchcv_file

SMALL = "shufflenet_g1_wd4"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of the small network in pytorchcv's names."""
    return pytorchcv_file(tmp_path / "weights.npz", SMALL)


def run(capsys: Any, *arguments: object) -> str:
    """Return what a command printed."""
    assert main([str(argument) for argument in arguments]) == 0
    return str(capsys.readouterr().out)


def refusal(capsys: Any, *arguments: object) -> str:
    """Return the one line that refuses the arguments."""
    assert main([str(argument) for argument in arguments]) == 2
    errors = str(capsys.readouterr().err)
    assert errors.count("\n") == 1
    return errors


def test_convert_then_predict(weights: Path, capsys: Any) -> None:
    output = run(capsys, "convert", weights, SMALL, "--image-size", 64, "--output", "model.keras")
    assert "in the names of pytorchcv" in output
    assert "64x64 pixels, bilinear, centre crop 0.875, mean 0.485 0.456 0.406" in output
    assert f"{models.describe(SMALL).trainable_parameters:,} parameters, 1,000 classes" in output
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    Image.fromarray(pixels).save("noise.png")
    Path("more").mkdir()
    Image.fromarray(pixels[:, ::-1]).save("more/noise.jpg")
    Image.fromarray(pixels).save("more/noise.png")

    first = json.loads(run(capsys, "predict", "model.keras", "noise.png", "--json"))[0]["top"][0]
    network = load_network("model.keras")
    assert first["class"] in network.metadata["class_names"]
    assert not list(Path.cwd().rglob("*.cam.png"))

    results = json.loads(run(capsys, "predict", "model.keras", "noise.png", "more", "--cam", "--json"))
    pictures = [result["cam"] for result in results]
    assert pictures == ["noise.cam.png", "more/noise.jpg.cam.png", "more/noise.png.cam.png"]
    with Image.open("noise.cam.png") as picture:
        # Enlarged four times, with a margin and a line below it.
        assert (picture.width - 4 * 90, picture.height > 4 * 50) == (24, True)
    assert len(json.loads(run(capsys, "predict", "model.keras", "more", "--json"))) == 2

    predict = ("predict", "model.keras", "noise.png")
    assert "did you mean tabby" in refusal(capsys, *predict, "--cam", "--cam-class", "taby")
    assert "belongs to --cam" in refusal(capsys, *predict, "--cam-class", "tabby")


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SMALL, "--output", "model.h5"), "must end in .keras"),
        ((SMALL, "--output", "none/model.keras"), "there is no folder none"),
        (("shufflenet_g1_wd5", "--output", "model.keras"), "did you mean shufflenet_g1_wd"),
        (("shufflenet_g1_w1", "--output", "model.keras"), "does not fit this network; keys "),
        (("mobilenet_w1", "--output", "model.keras"), "not MobileNet v1"),
        ((SMALL, "-a", "shuffle=no", "--output", "model.keras"), "shuffle='no'"),
    ],
)
def test_what_convert_refuses(weights: Path, arguments: tuple[str, ...], message: str, capsys: Any) -> None:
    assert message in refusal(capsys, "convert", weights, *arguments)
    assert sorted(path.name for path in Path.cwd().iterdir()) == [weights.name]


@pytest.mark.once
def test_ctrl_c_says_so_and_leaves_nothing(weights: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models.Network, "save", interrupted)
    assert main(["convert", str(weights), SMALL, "--output", "model.keras"]) == 130
    assert capsys.readouterr().err == "groupwise: stopped\n"
    assert sorted(path.name for path in Path.cwd().iterdir()) == [weights.name]


@pytest.mark.shared
def test_train_the_head_alone_on_grey_images(weights: Path, capsys: Any) -> None:
    """Grey images are shown to a network for colour, prepared as its weights expect it."""
    bars.write_npz(Path("bars.npz"))
    common = ("train", "bars.npz", "--image-size", 32, "--epochs", 1, "--batch-size", 32)
    arguments = (*common, "--model", SMALL, "--weights", weights, "--freeze-backbone", "--output", "run")
    assert "the head is fresh: 3 classes here, 1000 in" in run(capsys, *arguments)
    network = load_network("run")
    assert network.input_shape == (None, 32, 32, 3)
    assert network.metadata["preprocessing"]["mean"][0] == pytest.approx(0.485)
    published = models.create(SMALL, weights=weights)
    for layer in network.layers:
        if layer.name != "head":
            for ours, theirs in zip(layer.get_weights(), published.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert np.abs(network.get_layer("head").bias).max() > 0
    run(capsys, "train", "bars.npz", "--output", "run", "--resume")
    assert run(capsys, "evaluate", "run", "bars.npz", "--json")

    assert "--model NAME" in refusal(capsys, *common, "--weights", weights)
    assert "name trained ones with --weights" in refusal(capsys, *common, "--model", SMALL, "--freeze-backbone")


@pytest.mark.once
def test_arguments_travel_from_a_model_to_the_training_that_starts_from_it(weights: Path, capsys: Any) -> None:
    bars.write_npz(Path("bars.npz"))
    run(capsys, "convert", weights, SMALL, "-a", "squeeze_excite=false", "-a", "dropout=0.25", "--output", "m.keras")
    run(capsys, "train", "bars.npz", "--weights", "m.keras", "--image-size", 32, "--epochs", 1, "--output", "run")
    network = load_network("run")
    assert network.get_layer("dropout").rate == 0.25
    assert network.architecture["name"] == SMALL


@pytest.mark.once
def test_a_keras_file_that_wants_to_run_something_is_refused(tmp_path: Path, capsys: Any) -> None:
    """A lambda is stored as Python bytecode, which safe mode does not load."""
    path = str(tmp_path / "marker")
    inputs = keras.Input((4,))
    outputs = keras.layers.Lambda(lambda x: [os.open(path, os.O_CREAT), x][1], output_shape=(4,))(inputs)
    keras.Model(inputs, outputs).save("lambda.keras")
    Path(path).unlink(missing_ok=True)
    message = refusal(capsys, "predict", "lambda.keras", "lambda.keras")
    assert "refused, since it holds a program" in message
    assert "unsafe" not in message
    assert not Path(path).exists()
