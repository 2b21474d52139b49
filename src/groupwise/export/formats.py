"""The formats that a network can be exported to: which backends of Keras write them, and what each needs."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from groupwise.errors import UserError, argument
from groupwise.frameworks import FRAMEWORKS
from groupwise.writing import check_file, expanded


@dataclass(frozen=True)
class Format:
    """A format, as data.

    Attributes:
        name: what the command calls it.
        keras_name: what Keras's `Model.export` calls it.
        title: what people call it.
        ending: of its file; "" for a folder.
        writers: the backends of Keras that can write it, best first, and the packages that each needs.
        runner: the package that runs it, in which the exported file is checked.
        inspect: "module:name" of the function that counts a file's convolutions and runs it; it imports the runtime.
        beside: the endings of further files that belong to it.
        quantized: whether it has the operations of layers that Keras quantized.
        oldest_keras: the first version that writes it, for batches of any size.
    """

    name: str
    keras_name: str
    title: str
    ending: str
    writers: dict[str, tuple[str, ...]]
    runner: str
    inspect: str
    beside: tuple[str, ...] = ()
    quantized: bool = False
    oldest_keras: tuple[int, int] = (3, 12)


# ONNX through TensorFlow (tf2onnx) or JAX (jax2onnx): not tested, hence not here. A SavedModel through JAX or PyTorch
# needs TensorFlow as well, and then TensorFlow writes the plainer graph.
FORMATS = (
    Format(
        name="onnx",
        keras_name="onnx",
        title="ONNX",
        ending=".onnx",
        writers={"torch": ("torch", "onnx", "onnxscript")},
        runner="onnxruntime",
        inspect="groupwise.export.graphs:inspect_onnx",
        oldest_keras=(3, 14),
    ),
    Format(
        name="savedmodel",
        keras_name="tf_saved_model",
        title="SavedModel",
        ending="",
        writers={"tensorflow": ("tensorflow",)},
        runner="tensorflow",
        inspect="groupwise.backends.tensorflow.export:inspect_savedmodel",
        quantized=True,
    ),
    Format(
        name="litert",
        keras_name="litert",
        title="LiteRT",
        ending=".tflite",
        writers={"tensorflow": ("tensorflow",)},
        runner="tensorflow",
        inspect="groupwise.backends.tensorflow.export:inspect_litert",
        oldest_keras=(3, 13),
    ),
    Format(
        name="openvino",
        keras_name="openvino",
        title="OpenVINO",
        ending=".xml",
        writers={"tensorflow": ("tensorflow", "openvino"), "torch": ("torch", "openvino")},
        runner="openvino",
        inspect="groupwise.export.graphs:inspect_openvino",
        beside=(".bin",),
    ),
)


def find_format(name: str) -> Format:
    """Return the format of a name. Raises UserError, naming those that there are, for any other.

    Examples:
        >>> find_format("openvino").ending
        '.xml'
    """
    for entry in FORMATS:
        if entry.name == name:
            return entry
    raise UserError(f"{argument('format', name)}: must be one of {', '.join(entry.name for entry in FORMATS)}")


def checked_output(form: Format, path: str | Path) -> Path:
    """Return where a format's file goes. Raises UserError where it cannot go there, after trying."""
    named, path = argument("path", path), expanded(path).absolute()
    if form.ending and path.suffix != form.ending:
        raise UserError(f"{named}: must end in {form.ending} for {form.title}")
    if not form.ending and set(str(path)) & set("*?[\\"):
        raise UserError(f"{named}: TensorFlow reads no {form.title} from a path with one of * ? [ \\ in it")
    is_folder = os.path.isdir(path)  # noqa: PTH112 - Path's own raises where a name is too long
    if is_folder and (form.ending or not (path / "saved_model.pb").exists()):
        raise UserError(f"{named}: there is a folder of that name already")
    if not form.ending and os.path.isfile(path):  # noqa: PTH113
        raise UserError(f"{named}: there is a file of that name already")
    # A folder is tried by a file in it.
    check_file(path / "saved_model.pb" if is_folder else path, named)
    return path


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def keras_version() -> tuple[int, int]:
    """Return Keras's version, without its last part."""
    major, minor, *_ = importlib.metadata.version("keras").split(".")
    return int(major), int(minor)


def choose_writer(form: Format, installed: Callable[[str], bool] = is_installed) -> str:
    """Return the first backend that can write a format here.

    It is a second process's, so that the one in use has no advantage, and the best graph is taken.

    Raises:
        UserError: none can here; it says what to install.

    Examples:
        >>> choose_writer(find_format("openvino"), lambda package: package != "tensorflow")
        'torch'
    """
    if keras_version() < form.oldest_keras:
        oldest = ".".join(map(str, form.oldest_keras))
        raise UserError(f'{form.title} needs Keras {oldest} or newer: pip install "keras>={oldest}"')
    for name, needed in form.writers.items():
        if all(map(installed, needed)):
            return name
    missing = ([name for name in needed if not installed(name)] for needed in form.writers.values())
    lacking = min(missing, key=len)
    raise UserError(f"{form.title} cannot be written here without {' and '.join(lacking)}: {installing(*lacking)}")


def installing(*packages: str) -> str:
    """Return the command that installs packages which formats need, by the extras that bring them.

    Examples:
        >>> installing("torch", "onnx", "onnxscript")
        'pip install "groupwise[export,torch]"'
    """
    extras = {name if name in FRAMEWORKS else "export" for name in packages}
    return f'pip install "groupwise[{",".join(sorted(extras))}]"'
