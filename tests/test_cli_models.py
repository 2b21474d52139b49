"""Every command that takes a model, with models of any make: accelerated, of several inputs, of any size, in HDF5."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from groupwise import backends, models
from groupwise.cli import main
from groupwise.errors import UserError
from groupwise.inference import load_network
from groupwise.layers import DepthwiseConv2D, GroupedConv2D, SeparableConv2D
from groupwise.routing import tuning
from groupwise.routing.tuning import Choice


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.chdir(tmp_path)


def run(capsys: Any, *arguments: str) -> str:
    """Return what a command printed, each stretch of white space as one space."""
    code = main(list(arguments))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return " ".join(printed.out.split())


def refusal(capsys: Any, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return str(capsys.readouterr().err)


def test_what_accelerate_wrote_is_read_by_all(capsys: Any) -> None:
    """Also from Keras's HDF5, and with models within models."""
    inputs = keras.Input((6, 6, 8))
    inner = keras.Sequential([keras.Input((6, 6, 8)), layers.Conv2D(4, 3, groups=4, name="grouped")], name="inner")
    hidden = layers.DepthwiseConv2D(3, name="depthwise")(inner(inputs))
    keras.Model(inputs, layers.Dense(3)(layers.Flatten()(hidden))).save("m.h5")
    said = run(capsys, "routing", "m.h5")
    assert "1 x Conv2D of Keras's own, which runs as Keras does; `groupwise accelerate` puts ours" in said
    assert "has no convolutions of ours" in refusal(capsys, "tune", "m.h5", "--show")
    run(capsys, "accelerate", "m.h5", "--output", "fast.keras")
    for name in ("m.h5", "fast.keras"):
        said = run(capsys, "describe", name)
        # 4x4 places by 3x3x2x4 and 2x2 places by 3x3x4 entries of kernels, and the dense layer's 16x3.
        assert f"{16 * 72:,} " in said
        assert f" {16 * 72 + 4 * 36 + 48:,} MACs for one image" in said
    said = run(capsys, "routing", "fast.keras")
    assert "3x3 convolution, 8 -> 4 channels, 4 groups of 2" in said
    assert "3x3 convolution, 4 -> 4 channels, 4 groups of 1" in said
    assert "of Keras's own" not in said
    run(capsys, "factorize", "m.h5")


def test_several_inputs_and_outputs(capsys: Any) -> None:
    image, place = keras.Input((6, 6, 3), name="image"), keras.Input((2,), name="place")
    hidden = GroupedConv2D(4, 3, name="conv")(image)
    both = layers.Concatenate()([layers.GlobalAveragePooling2D()(hidden), place])
    keras.Model([image, place], {"a": layers.Dense(2)(both), "b": layers.Dense(1)(both)}).save("m.keras")
    assert f" {16 * 108 + 12 + 6:,} MACs for one image" in run(capsys, "describe", "m.keras")
    assert "3x3 convolution, 3 -> 4 channels" in run(capsys, "routing", "m.keras")
    assert "was not written by `groupwise train`" in refusal(capsys, "predict", "m.keras", "m.keras")


def test_images_of_any_size_and_layers_made_of_layers(capsys: Any) -> None:
    inputs = keras.Input((None, None, 4))
    hidden = SeparableConv2D(4, 3, name="separable")(DepthwiseConv2D(3, name="depthwise")(inputs))
    hidden = layers.TimeDistributed(layers.Dense(3), name="each")(layers.Reshape((-1, 4))(hidden))
    keras.Model(inputs, hidden).save("m.keras")
    said = run(capsys, "describe", "m.keras")
    assert "at least 0 MACs for one image" in said
    assert "not counted, since their sizes are unknown: the MACs of 3 layers (depthwise, separable, each)" in said
    assert "3x3 convolution, 4 -> 4 channels, 4 groups of 1" in run(capsys, "routing", "m.keras")
    assert "takes images of any size: save it with an input shape" in refusal(capsys, "tune", "m.keras")
    with pytest.raises(ValueError, match="layer 'depthwise': its MACs cannot be counted"):
        _ = models.describe(keras.saving.load_model("m.keras")).macs


@pytest.mark.once
def test_a_model_without_a_graph_is_said(capsys: Any) -> None:
    @keras.saving.register_keras_serializable("test_cli_models")
    class Own(keras.Model):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.conv = layers.Conv2D(2, 3)

        def call(self, x: Any) -> Any:
            return self.conv(x)

    model = Own()
    model(np.zeros((1, 6, 6, 3), "float32"))
    model.save("own.keras")
    for command in ("describe", "routing"):
        assert "computes in a method of its own" in refusal(capsys, command, "own.keras")


def test_tune_shows_what_is_stored_for_a_model(cache_folder: Path, capsys: Any) -> None:
    inputs = keras.Input((6, 6, 8))
    keras.Model(inputs, GroupedConv2D(8, 3, groups=4)(inputs)).save("m.keras")
    choice = Choice((("native", 1.0), ("blocks", 2.0)), "native", "2024-01-02")
    stored = {"narrow groups": choice, "dense 1x1": choice}
    tuning.store(keras.backend.backend(), backends.active.version, stored)
    tuning.current.cache_clear()
    assert "dense 1x1" in run(capsys, "tune", "--show")
    said = run(capsys, "tune", "m.keras", "--show")
    assert "narrow groups" in said
    assert "dense 1x1" not in said


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_names": "ab"}, "class_names must be 2 texts"),
        ({"class_names": ["a"]}, "class_names must be 2 texts"),
        ({"class_names": ["a", 2]}, "class_names must be 2 texts"),
        ({"preprocessing": None}, "its preprocessing says mean=None"),
        ({"preprocessing": {"mean": [float("nan")], "std": [1.0]}}, "mean=[nan]"),
        ({"preprocessing": {"mean": [0.5], "std": [0.0]}}, "std=[0.0]"),
        ({"preprocessing": {"mean": [0.5, 0.5], "std": [1.0]}}, "mean=[0.5, 0.5]"),
        ({"preprocessing": {"mean": [0.5], "std": [1.0], "crop": 0}}, "crop=0"),
        ({"preprocessing": {"mean": [0.5], "std": [1.0], "interpolation": "best"}}, "interpolation='best'"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    network = models.create("mnist_cnn_separable", num_classes=2, input_shape=(8, 8, 1))
    network.metadata.update({"class_names": ["a", "b"], **changes})
    network.save("m.keras")
    with pytest.raises(UserError) as refused:
        load_network("m.keras")
    assert str(refused.value).startswith("m.keras is damaged: its ")
    assert says in str(refused.value)


def test_a_network_in_hdf5_predicts_and_trains_on(tmp_path: Path, capsys: Any) -> None:
    from tests import tiny as bars

    network = models.create("mnist_cnn_separable", num_classes=3, input_shape=(8, 8, 1))
    network.metadata["class_names"] = ["across", "down", "slant"]
    network.save("m.h5")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("a.png")
    assert "across" in run(capsys, "predict", "m.h5", "a.png")
    bars.write_npz(Path("bars.npz"))
    said = run(capsys, "train", "bars.npz", "--weights", "m.h5", "--epochs", "1", "--output", "run")
    assert "test accuracy" in said
