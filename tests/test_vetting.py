"""Models of strangers in files, which run nothing and read nothing else: what is refused, and how it is said."""

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

import groupwise
from groupwise import models
from groupwise.errors import UserError
from groupwise.models.reading import _explained
from tests.model_files import a_model, refusal

pytestmark = pytest.mark.once


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
    (tmp_path / "b.weights.h5").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"b\.weights\.h5 is no HDF5 file, or a damaged one"):
        groupwise.load_keras_weights(model, tmp_path / "b.weights.h5")
    with pytest.raises(UserError, match=r"^none\.h5 does not exist: name a \.weights\.h5 file$"):
        groupwise.load_keras_weights(model, "none.h5")


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
