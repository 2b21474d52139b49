"""Whole models in files: Keras 3's and Keras 2's."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import layers

from groupwise import models
from groupwise.models.reading import is_model, load_model
from tests.model_files import a_model, outputs, refusal

# Kinds of files


def test_every_kind_of_file_holds_the_same_model(tmp_path: Path) -> None:
    model = a_model()
    model.save(tmp_path / "a.keras")
    model.save(tmp_path / "a.h5")
    shutil.copyfile(tmp_path / "a.h5", tmp_path / "a.hdf5")
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        archive.extractall(tmp_path / "folder")
    for name in ("a.keras", "a.h5", "a.hdf5", "folder"):
        assert is_model(tmp_path / name)
        np.testing.assert_array_equal(outputs(load_model(tmp_path / name)), outputs(model))


def test_a_network_of_ours_in_hdf5_keeps_its_metadata(tmp_path: Path) -> None:
    network = models.create("mnist_cnn_separable", num_classes=3, input_shape=(8, 8, 1))
    network.metadata["class_names"] = ["a", "b", "c"]
    network.save(tmp_path / "a.h5")
    read = load_model(tmp_path / "a.h5")
    assert isinstance(read, models.Network)
    assert read.metadata == network.metadata
    assert read.architecture == network.architecture
    np.testing.assert_array_equal(outputs(read), outputs(network))


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    a_model().save_weights(tmp_path / "a.weights.h5")
    assert "holds weights without a model's description" in refusal(tmp_path / "a.weights.h5")
    assert not is_model(tmp_path / "a.weights.h5")
    for name, says in (
        ("a.tflite", "is LiteRT's, which holds no layers: name a .keras file, or a whole model in an .h5 file"),
        ("a.onnx", "ONNX's"),
        ("saved_model.pb", "TensorFlow's"),
        ("a.pth", "make a model of it with `groupwise.models.create(NAME, weights='a.pth')`, and name that"),
        ("a.keras", "is no .keras file, or a damaged one"),
        ("a.h5", "is no whole model in an .h5 file, or a damaged one"),
    ):
        (tmp_path / name).write_bytes(b"something")
        assert says in refusal(tmp_path / name)
    (tmp_path / "folder").mkdir()
    assert "is a folder without a model" in refusal(tmp_path / "folder")
    (tmp_path / "folder" / "saved_model.pb").touch()
    assert "is a SavedModel of TensorFlow's" in refusal(tmp_path / "folder")
    assert "does not exist" in refusal(tmp_path / "none.keras")


def test_what_a_model_was_compiled_with_does_not_matter(tmp_path: Path) -> None:
    model = a_model()
    model.compile("adam", loss=lambda truth, guess: keras.ops.mean(guess - truth))
    model.save(tmp_path / "a.keras")
    np.testing.assert_array_equal(outputs(load_model(tmp_path / "a.keras")), outputs(model))


def test_a_class_of_somebodys_own_is_named(tmp_path: Path) -> None:
    class Gate(layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Gate()(inputs))
    for name in ("a.keras", "a.h5"):
        model.save(tmp_path / name)
        assert " needs Gate, of somebody's own, which is not known here: in Python, import" in refusal(tmp_path / name)


# Keras 2: what it wrote, by hand; the right outputs are those of the same model made by Keras 3


def as_keras_2(path: Path, change: Any) -> Path:
    """Let `change` edit the description in an HDF5 file, which then counts as Keras 2's."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(change(config))
        file.attrs["keras_version"] = "2.4.0"
    return path


def each_layer(config: Any, change: Any) -> Any:
    """Return a description, every layer, initialiser and the like in it changed."""
    if isinstance(config, list):
        return [each_layer(item, change) for item in config]
    if not isinstance(config, dict):
        return config
    found = {key: each_layer(value, change) for key, value in config.items()}
    return change(found) if "class_name" in found else found


def old_layer(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a layer as Keras 2 wrote it."""
    name, config = layer["class_name"], dict(layer["config"])
    if name in ("DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"):
        config["groups"] = 1
    if name == "SeparableConv2D":
        zeros = {"class_name": "GlorotUniform", "config": {"seed": None, "dtype": "float32"}}
        config |= {"kernel_initializer": zeros, "kernel_regularizer": None, "kernel_constraint": None}
    if name == "BatchNormalization":
        config["axis"] = [3]
    if "dtype" in config:
        config["dtype"] = {"class_name": "Policy", "config": {"name": "float32"}}
    if name == "InputLayer":
        config = {"batch_input_shape": config["batch_shape"], "dtype": "float32", "name": config["name"]}
        config |= {"sparse": False, "ragged": False}
    moved: dict[str, Any] = {"module": "keras.src.engine.moved", "registered_name": None, "build_config": {}}
    return {**layer, **moved, "config": config}


def old_calls(config: dict[str, Any]) -> dict[str, Any]:
    """Return a functional model whose layers have one input each, with its calls as Keras 2 wrote them."""
    inner = {
        layer["name"] for layer in config["config"]["layers"] if layer["class_name"] in ("Functional", "Sequential")
    }
    for layer in config["config"]["layers"]:
        histories = [node["args"][0]["config"]["keras_history"] for node in layer["inbound_nodes"]]
        layer["inbound_nodes"] = [[[name, call + (name in inner), place, {}]] for name, call, place in histories]
    for ends in ("input_layers", "output_layers"):
        config["config"][ends] = [config["config"][ends]]
    return config


def test_a_model_of_keras_2(tmp_path: Path) -> None:
    model = a_model()
    model.save(tmp_path / "a.h5")
    as_keras_2(tmp_path / "a.h5", lambda config: each_layer(old_calls(config), old_layer))
    np.testing.assert_array_equal(outputs(load_model(tmp_path / "a.h5")), outputs(model))


def test_models_within_a_model_of_keras_2(tmp_path: Path) -> None:
    """A functional model counts the calls of one within it from 1."""
    within = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3)], name="within")
    inputs, hidden = keras.Input((6, 6, 3)), keras.Input((6, 6, 3))
    inner = keras.Model(hidden, layers.ReLU()(within(hidden)), name="inner")
    model = keras.Model(inputs, layers.Flatten()(inner(inputs)))
    model.save(tmp_path / "a.h5")

    def change(config: dict[str, Any]) -> Any:
        config = old_calls(config)
        place = next(index for index, layer in enumerate(config["config"]["layers"]) if layer["name"] == "inner")
        config["config"]["layers"][place] = {**config["config"]["layers"][place]}
        inside = old_calls({"config": config["config"]["layers"][place]["config"]})
        config["config"]["layers"][place]["config"] = inside["config"]
        return each_layer(config, old_layer)

    as_keras_2(tmp_path / "a.h5", change)
    np.testing.assert_array_equal(outputs(load_model(tmp_path / "a.h5")), outputs(model))


def test_teachable_machines_model(tmp_path: Path) -> None:
    """Two sequential models in one: features of a functional one, and two dense layers; the first ones tell shapes."""
    inputs = keras.Input((6, 6, 3))
    features = keras.Model(inputs, layers.ReLU(6.0)(layers.DepthwiseConv2D(3, use_bias=False)(inputs)))
    first = keras.Sequential([keras.Input((6, 6, 3)), features, layers.GlobalAveragePooling2D()])
    head = keras.Sequential([keras.Input((3,)), layers.Dense(5, activation="relu"), layers.Dense(2)])
    model = keras.Sequential([keras.Input((6, 6, 3)), first, head])
    model.save(tmp_path / "a.h5")

    def change(config: dict[str, Any]) -> Any:
        both = config["config"]["layers"][1:]
        both[0]["config"]["layers"][1] |= old_calls({"config": both[0]["config"]["layers"][1]["config"]})
        dense = both[1]["config"]["layers"][1:]
        dense[0]["config"]["batch_input_shape"] = [None, 3]
        both[1]["config"] = dense  # a list, as before Keras 2.2.3
        return each_layer({"class_name": "Sequential", "config": {"name": "both", "layers": both}}, old_either)

    def old_either(layer: dict[str, Any]) -> dict[str, Any]:
        return layer if isinstance(layer["config"], list) else old_layer(layer)

    as_keras_2(tmp_path / "a.h5", change)
    np.testing.assert_array_equal(outputs(load_model(tmp_path / "a.h5")), outputs(model))


def test_tensors_by_name_and_layers_within_layers_of_keras_2(tmp_path: Path) -> None:
    inputs = keras.Input((5, 4))
    both = layers.Bidirectional(layers.SimpleRNN(3, return_sequences=True))(inputs)
    model = keras.Model(inputs, layers.MultiHeadAttention(1, 2)(both, value=both))
    model.save(tmp_path / "a.h5")

    def change(config: dict[str, Any]) -> Any:
        *before, last = config["config"]["layers"]
        for layer in before:
            layer["inbound_nodes"] = [[["a", 0, 0, {}]] for _ in layer["inbound_nodes"]]
            layer["config"]["name"] = layer["name"] = "a" if layer["class_name"] == "InputLayer" else "b"
        last["inbound_nodes"] = [[["b", 0, 0, {"value": ["b", 0, 0]}]]]
        config["config"] |= {"input_layers": [["a", 0, 0]], "output_layers": [[last["name"], 0, 0]]}
        return each_layer(config, old_layer)

    as_keras_2(tmp_path / "a.h5", change)
    np.testing.assert_array_equal(outputs(load_model(tmp_path / "a.h5")), outputs(model))


def test_an_operation_of_tensorflow_is_said(tmp_path: Path) -> None:
    a_model().save(tmp_path / "a.h5")

    def change(config: dict[str, Any]) -> Any:
        config["config"]["layers"][-1] |= {"class_name": "TFOpLambda", "config": {"function": "math.truediv"}}
        return config

    said = refusal(as_keras_2(tmp_path / "a.h5", change))
    assert "an operation of TensorFlow (math.truediv), which Keras 2 wrote down and Keras 3 does not know" in said
