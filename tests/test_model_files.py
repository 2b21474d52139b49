"""Whole models in files: Keras 3's, Keras 2's, and those of strangers, which run nothing and read nothing else."""

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import groupwise
from groupwise import models
from groupwise.errors import UserError
from groupwise.models.reading import _explained, is_model, load_model


def a_model() -> keras.Model:
    inputs = keras.Input((6, 6, 3))
    hidden = layers.DepthwiseConv2D(3, padding="same")(inputs)
    hidden = layers.BatchNormalization()(layers.SeparableConv2D(4, 3)(hidden))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(hidden))))


def outputs(model: keras.Model) -> np.ndarray[Any, Any]:
    shapes = [(2, *(size or 6 for size in tensor.shape[1:])) for tensor in model.inputs]
    values = [np.random.default_rng(0).normal(size=shape).astype("float32") for shape in shapes]
    found = model(values if len(values) > 1 else values[0], training=False)
    return np.asarray(keras.ops.convert_to_numpy(found))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_model(path)
    sentence = str(refused.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert len(sentence) < len(str(path)) + 600
    return sentence.removeprefix(str(path))


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
        ("a.pth", "make a model of it with `groupwise convert a.pth NAME`, and name that"),
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


# Strangers


def edited(path: Path, change: Any) -> Path:
    """Write a .keras file whose description `change` edits."""
    model = a_model()
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = json.dumps(change(json.loads(parts["config.json"]))).encode()
    write(path, parts)
    return path


def write(path: Path, parts: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def put(place: int, **values: Any) -> Any:
    """Return an edit of a layer's arguments."""

    def change(config: dict[str, Any]) -> dict[str, Any]:
        config["config"]["layers"][place]["config"] |= values
        return config

    return change


def function(module: str, name: str) -> dict[str, Any]:
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def instance(module: str | None, name: str, **config: Any) -> dict[str, Any]:
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put(-1, activation=instance(None, "__lambda__", code="x")), "is refused, since it holds a program"),
        (put(-1, activation=function("keras.utils", "get_file")), "it would call keras.utils.get_file"),
        (put(-1, activation=function("keras.datasets.mnist", "load_data")), "it would call keras.datasets.mnist.load"),
        (put(-1, activation=function("os", "system")), "it would call os.system"),
        (put(-1, activation=instance("keras.applications", "ResNet50")), "it asks for keras.applications.ResNet50"),
        (put(-1, activation=instance("keras.callbacks", "CSVLogger", filename="a")), "keras.callbacks.CSVLogger"),
        (put(-1, activation=instance("os.path", "join")), "needs join, of somebody's own"),
        (put(-1, bias_initializer=instance("keras.layers", "TFSMLayer")), "its TFSMLayer reads a SavedModel"),
        (put(-1, bias_initializer=instance("keras.layers", "TorchModuleWrapper")), "holds a pickled program"),
        (put(-1, extra=instance("keras.layers", "StringLookup", vocabulary="/etc/passwd")), "vocabulary='/etc/passwd'"),
        (put(-1, units=10**9), "has not the weights for units=1000000000"),
        (put(-1, units=2**13, recurrent_initializer="x"), "has not the weights for units=8192"),
        (put(2, filters=60000, kernel_size=[5000, 5000]), "kernel_size=[5000, 5000]"),
        (put(2, filters=60000, kernel_size=5000), "kernel_size=5000"),
        (put(2, depth_multiplier=2, kernel_size=5000), "has not the weights for"),
        (put(-1, input_dim=60000, output_dim=60000), "input_dim=60000, output_dim=60000"),
        (put(-1, num_heads=60000, key_dim=60000), "num_heads=60000, key_dim=60000"),
        (
            lambda config: [put(place, input_dim=3000, output_dim=3000)(config) for place in (2, -1)][-1],
            "has not the weights for",
        ),
        (put(2, filters=1e30), "has not the weights for filters=1e+30"),
        (put(-1, units=float("nan")), "has not the weights for units=nan"),
        (lambda config: [config], "its description is no names and values, but a list"),
        (put(-1, activation="foo"), "as a Keras model: Could not interpret activation function identifier: foo"),
        (put(-1, units=-3), "as a Keras model: "),  # and Keras's reason, which is another one before 3.13
        (lambda config: {**config, "config": 3}, "cannot be read as a Keras model"),
    ],
)
def test_a_description_that_asks_for_more_than_a_model(tmp_path: Path, change: Any, says: str) -> None:
    assert says in refusal(edited(tmp_path / "a.keras", change))


@pytest.mark.parametrize("bold", ["\x1b[1m", r"\x1b[1m"])
def test_the_innermost_reason_is_said_without_styles(bold: str) -> None:
    inner = (
        f"Exception encountered when calling Add.call(). {bold}Shapes differ.{bold} Arguments received by Add.call(): x"
    )
    text = f"<class 'Functional'> could not be deserialized. config={{'a': 1}}. Exception encountered: {inner}"
    said = str(_explained(Path("a.keras"), ValueError(text)))
    assert said == "a.keras cannot be read as a Keras model: Shapes differ"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": "hf:owner/name"}, "architecture: weights='hf:owner/name' is refused"),
        ({"weights": None}, "architecture: weights=None is refused"),
        ({"name": "resnet51"}, "model 'resnet51'"),
        ({"name": ["a"]}, "must be the arguments of groupwise.models.create"),
        ({"num_classes": 10**12}, "has not the weights for num_classes=1000000000000"),
        ({"input_shape": [10**9, 10**9, 1]}, "has not the weights for input_shape="),
        ({"input_shape": "big"}, "input_shape='big': must be (height, width, channels)"),
        ({"input_shape": [8, 8, "1"]}, "input_shape=[8, 8, '1']: must be (height, width, channels)"),
        ({"num_classes": "3"}, "num_classes='3': must be an integer of at least 1"),
        ({"num_classes": 2.5}, "num_classes=2.5: must be an integer of at least 1"),
        ({"dtype": {"class_name": "x", "config": {}}}, "dtype="),
        ({"dropout": [{}]}, "architecture: dropout=[{}] is refused"),
        ({"form": "a"}, "has no such argument"),
    ],
)
def test_a_network_of_ours_is_made_of_plain_values(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    models.create("mnist_cnn_separable", num_classes=3, input_shape=(8, 8, 1)).save(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["architecture"] |= changes
    write(tmp_path / "a.keras", {**parts, "config.json": json.dumps(config).encode()})
    assert says in refusal(tmp_path / "a.keras")
    if "weights" in changes:
        with pytest.raises(UserError, match="is refused"):
            keras.saving.load_model(tmp_path / "a.keras")


def test_links_and_numbers_in_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(np.ones(64, "float32").tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["0"] = np.ones(2)
    model = a_model()
    model.save(tmp_path / "a.keras")
    model.save(tmp_path / "a.h5")
    with zipfile.ZipFile(tmp_path / "a.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}

    def external(group: Any, name: str) -> None:
        shape = group[name].shape
        del group[name]
        group.create_dataset(name, shape, "float32", external=[(str(tmp_path / "secret"), 0, 256)])

    def linked(group: Any, name: str) -> None:
        del group[name]
        group[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/0")

    for edit, says in ((external, "lie in other files"), (linked, "is a link, which could lead to another file")):
        content = io.BytesIO(parts["model.weights.h5"])
        with h5py.File(content, "r+") as file:
            edit(file["layers/dense/vars"], "1")
        write(tmp_path / "b.keras", {**parts, "model.weights.h5": content.getvalue()})
        assert says in refusal(tmp_path / "b.keras")
        shutil.copyfile(tmp_path / "a.h5", tmp_path / "b.h5")
        with h5py.File(tmp_path / "b.h5", "r+") as file:
            edit(next(iter(file["model_weights"][model.layers[-1].name].values())), "bias")
        assert says in refusal(tmp_path / "b.h5")


def test_weights_alone_are_checked_too(tmp_path: Path) -> None:
    model = a_model()
    model.save_weights(tmp_path / "a.weights.h5")
    groupwise.load_keras_weights(model, tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
        file["layers/other"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    with pytest.raises(UserError, match="its 'other' is a link, which could lead to another file"):
        groupwise.load_keras_weights(model, tmp_path / "a.weights.h5")


def test_parts_outside_the_file_and_parts_that_swell_are_refused(tmp_path: Path) -> None:
    path = edited(tmp_path / "a.keras", lambda config: config)
    for name in ("assets/../../out.txt", "/tmp/out.txt", "C:\\out.txt"):
        shutil.copyfile(path, tmp_path / "b.keras")
        with zipfile.ZipFile(tmp_path / "b.keras", "a") as archive:
            archive.writestr(name, b"")
        assert "would lie outside its folder" in refusal(tmp_path / "b.keras")
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("vars/0", (2**40,), "float32", chunks=True)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    write(tmp_path / "b.keras", {**parts, "model.weights.h5": content.getvalue()})
    assert f"its 'vars/0' would become {2**42:,} bytes" in refusal(tmp_path / "b.keras")
    with zipfile.ZipFile(tmp_path / "b.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("assets/a.txt", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(2**20))
    assert "would become" in refusal(tmp_path / "b.keras")
