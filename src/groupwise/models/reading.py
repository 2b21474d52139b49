"""Any saved Keras model, read with care."""

import contextlib
import io
import json
import re
import shutil
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras

from groupwise.errors import UserError, call
from groupwise.models.keras2 import in_keras_3, known_arguments
from groupwise.models.vetting import check_archive, check_config, unknown
from groupwise.weights.hdf5 import check_hdf5
from groupwise.writing import expanded

HDF5 = (".h5", ".hdf5")
ENDINGS = (".keras", *HDF5)
READ = "a .keras file, or a whole model in an .h5 file"
OTHERS = {
    ".tflite": "LiteRT's, which holds no layers",
    ".onnx": "ONNX's, which holds no layers",
    ".pb": "TensorFlow's, which holds no layers",
    ".json": "a model's description without its weights",
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".npz", ".tar"), "weights without their network"),
}
"""What other files are, by their endings."""
LONGEST = 300  # characters of what Keras says
STYLES = re.compile(r"(?:\x1b|\\x1b)\[[\d;]*m")
"""Bold and the like for a terminal, where Keras quotes itself as its letters."""


def load_model(path: Path) -> keras.Model:
    """Return any Keras model from its file, without what it was compiled with.

    Nothing that the file holds is run, and nothing but the file is read.

    Args:
        path: a .keras file, a whole model in an .h5 or .hdf5 file (of Keras 3 or 2), or a folder in which Keras saved
            one unzipped.

    Raises:
        UserError: there is no such file, it holds something else or is damaged, or it would run a program of its own,
            or read other files.
    """
    path = expanded(path)
    try:
        with vetted(path) as checked:
            model: keras.Model = keras.saving.load_model(checked, compile=False, safe_mode=True)
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # Keras raises nearly anything on a file that is not its own
        raise _explained(path, error) from error
    return model


def _explained(path: Path, error: Exception) -> UserError:
    """Return what to say of an error of Keras's, whose texts lead to the reason and end in whole descriptions."""
    text = " ".join(STYLES.sub("", str(error)).split())
    own = re.search(r"(?:Unknown \w+:|Could not locate (?:class|function)) '([^']+)'", text)
    if own:
        return unknown(path, own[1])
    reason = re.split(r"Exception encountered(?: when calling \S+)?[:.] ", text)[-1]
    reason = re.split(r" using config=| Full (?:object )?config\b| config=\{| Arguments received by ", reason)[0]
    reason = textwrap.shorten(reason, LONGEST, placeholder=" ...").rstrip(".") or type(error).__name__
    return UserError(f"{path} cannot be read as a Keras model: {reason}")


def is_model(path: Path) -> bool:
    """Return whether a path is a Keras model, by its kind alone: weights without a network are none."""
    path = expanded(path)
    return path.suffix == ".keras" or _is_unzipped(path) or (path.suffix.lower() in HDF5 and _is_whole(path))


@contextlib.contextmanager
def vetted(path: Path) -> Iterator[Path]:
    """Check a model's file, and give the path of what Keras can read: the file itself, or an edited copy.

    Raises:
        UserError: as `load_model`.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name {READ}")
    if path.is_dir():
        _check_folder(path)
        yield path
    elif zipfile.is_zipfile(path):
        _check_zip(path)
        yield path
    elif h5py.is_hdf5(path):
        with tempfile.TemporaryDirectory() as folder:
            yield _readable_hdf5(path, Path(folder))
    elif path.suffix.lower() in OTHERS:
        raise _other(path, path.suffix.lower())
    else:
        kind = "whole model in an .h5 file" if path.suffix.lower() in HDF5 else ".keras file"
        raise UserError(f"{path} is no {kind}, or a damaged one")


def _other(path: Path, ending: str) -> UserError:
    """Return what to say of a file of another kind, and what to do with it."""
    if OTHERS[ending] != OTHERS[".pth"]:
        return UserError(f"{path} is {OTHERS[ending]}: name {READ}")
    remedy = call("models.create", "NAME", weights=path.name)
    return UserError(f"{path} is {OTHERS[ending]}: make a model of it with {remedy}, and name that")


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "config.json" not in names:
            other = path.suffix.lower() if path.suffix.lower() in OTHERS else ".pth" if _is_torch(names) else None
            if other:
                raise _other(path, other)
            raise UserError(f"{path} is no .keras file, or a damaged one")
        if path.suffix != ".keras":
            raise UserError(f"{path} is a .keras file under another name: give it the ending .keras")
        check_archive(path, archive)
        config = _parsed(archive.read("config.json"))
        stored = 0
        for name in names:
            if name.endswith(".h5"):
                stored += archive.getinfo(name).file_size
                with h5py.File(io.BytesIO(archive.read(name)), "r") as file:
                    check_hdf5(path, file)
            elif name.endswith(".npz"):
                stored += archive.getinfo(name).file_size
        check_config(path, config, stored)


def _is_torch(names: list[str]) -> bool:
    return any(name.endswith("/data.pkl") for name in names)


def _is_unzipped(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "model.weights.h5").is_file()


def _check_folder(path: Path) -> None:
    if (path / "saved_model.pb").exists():
        raise UserError(f"{path} is a SavedModel of TensorFlow's, which holds no layers: name {READ}")
    if not _is_unzipped(path):
        raise UserError(f"{path} is a folder without a model: name {READ}")
    with h5py.File(path / "model.weights.h5", "r") as file:
        check_hdf5(path, file)
    check_config(path, _parsed((path / "config.json").read_bytes()), (path / "model.weights.h5").stat().st_size)


def _is_whole(path: Path) -> bool:
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return "model_config" in file.attrs


def _readable_hdf5(path: Path, folder: Path) -> Path:
    """Check a whole model in HDF5, and return its path, or that of a copy in `folder` whose description Keras reads."""
    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise UserError(
                f"{path} holds weights without a model's description: make the model, give it them with "
                f"model.load_weights({path.name!r}), and save it with model.save('MODEL.keras')"
            )
        check_hdf5(path, file)
        config = _parsed(file.attrs["model_config"])
        version = _text(file.attrs.get("keras_version", "2"))
    readable = known_arguments(_of_ours(config if version.startswith("3") else in_keras_3(config)))
    check_config(path, readable, path.stat().st_size)
    if readable == config and path.suffix in HDF5:
        return path
    copy = folder / "model.h5"
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(readable)
    return copy


def _of_ours(config: dict[str, Any]) -> dict[str, Any]:
    """Return a whole network of ours under the name by which Keras finds it: its HDF5 leaves out the package's."""
    name, arguments = config.get("class_name"), config.get("config")
    if name in ("Network", "RewrittenNetwork") and isinstance(arguments, dict) and "metadata" in arguments:
        return {**config, "class_name": f"groupwise>{name}"}
    return config


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _parsed(text: Any) -> dict[str, Any]:
    config = json.loads(_text(text))
    if not isinstance(config, dict):
        raise UserError(f"its description is no names and values, but a {type(config).__name__}")
    return config
