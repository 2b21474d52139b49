"""Exporting: what is asked for is checked here, a second process writes and runs it, and the file gets its name."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import groupwise
from groupwise.errors import UserError
from groupwise.export.formats import Format, checked_output, choose_writer, find_format
from groupwise.export.worker import AT_ONCE, prepare_layers
from groupwise.files import PARTIAL, expanded, writing
from groupwise.models import create, variants
from groupwise.models.network import Network
from groupwise.models.saved import load_model
from groupwise.training.saved import model_path, prepared_image

TOLERANCE = 1e-4
_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from groupwise.export.worker import main; main(sys.argv[2])"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file, or SavedModel's folder.
        size: in bytes, of all that belongs to it.
        backend: the backend of Keras that wrote it.
        groups: of each convolution in the file.
        images: how many the file was run on.
        difference: the largest between its outputs and the network's, relative to the largest output; None where the
            format's runtime is not installed.
    """

    path: Path
    size: int
    backend: str
    groups: tuple[int, ...]
    images: int
    difference: float | None


def export_model(
    model: Any,
    path: str | Path,
    format: str = "onnx",  # noqa: A002 - Keras's own name for it
    images: Sequence[Path] = (),
    image_size: tuple[int, int] | None = None,
) -> Exported:
    """Write a network for another runtime, run it there and compare the outputs.

    A grouped convolution stays one operation, and none of this package's own is in the file. A second process writes
    it, on a backend of Keras that can.

    Args:
        model: a Keras model from images to one output, a .keras file, a run's folder, or a name of
            `groupwise.models.list_models()` for fresh weights.
        path: the file to write; a folder for "savedmodel".
        format: "onnx", "savedmodel", "litert" or "openvino".
        images: files to compare the outputs on, prepared as the network wants them; none is noise.
        image_size: (height, width), for a network of any size.

    Raises:
        UserError: bad arguments, what is missing here (and how to install it), a network that cannot be exported, or
            outputs that differ by more than 1e-4 of the largest one: the file is there then.

    Examples:
        >>> export_model("mnist_cnn_grouped", "mnist.onnx").groups  # doctest: +SKIP
        (1, 4, 1, 8, 1, 8, 1, 16, 1)
    """
    form = find_format(format)
    writer = choose_writer(form)
    path = checked_output(form, path)
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=PARTIAL) as name:
        folder = Path(name)
        source = _source(model, folder, image_size)
        network = load_model(source)
        shape = _input_shape(network, image_size)
        inputs = _prepared(network, images, shape) if images else _noise(shape)
        prepare_layers(network)
        np.savez(folder / "images.npz", images=inputs, outputs=_outputs(network, inputs, shape[0]))
        request = {"model": str(source), "format": form.name, "title": form.title, "name": path.name, "batch": shape[0]}
        result = _run_worker(folder, request, writer)
        size = _put_in_place(form, folder, path)
    done = Exported(path, size, writer, tuple(result["groups"]), len(inputs), result["difference"])
    if done.difference is not None and not done.difference <= TOLERANCE:
        raise UserError(
            f"{path} was written, but its outputs differ from the network's by {done.difference:.1e} of the largest "
            f"one, more than {TOLERANCE:.0e}"
        )
    return done


def _source(model: Any, folder: Path, image_size: tuple[int, int] | None) -> Path:
    """Return the .keras file of a model; one that is in memory is saved into the folder first."""
    if isinstance(model, str | Path):
        if not expanded(model).exists() and str(model) in variants():
            variant = variants()[str(model)]
            shape = (*image_size, variant.input_shape[2]) if image_size else None
            model = create(str(model), input_shape=shape)
        else:
            return model_path(model).absolute()
    source = folder / "source.keras"
    model.save(source)
    return source


def _input_shape(model: keras.Model, image_size: tuple[int, int] | None) -> tuple[int | None, int, int, int]:
    """Return (batch, height, width, channels), or channels first; a batch of any size is None."""
    # A subclassed model that was never built has neither.
    shapes = [tuple(tensor.shape) for tensor in getattr(model, "inputs", None) or ()]
    outputs = getattr(model, "outputs", None) or ()
    if len(shapes) != 1 or len(outputs) != 1 or len(shapes[0]) != 4:
        raise UserError("only networks from one batch of images to one output are exported")
    batch, *sizes = shapes[0]
    own = list(sizes)
    if image_size is not None and keras.config.image_data_format() == "channels_last":
        sizes = [own_size or size for own_size, size in zip(own, (*image_size, own[2]), strict=True)]
        if tuple(sizes[:2]) != tuple(image_size):
            raise UserError(f"image size {image_size[0]}x{image_size[1]}: the network's own is {own[0]}x{own[1]}")
    if None in sizes:
        raise UserError("the network takes images of any size: say of which one, such as --image-size 224")
    return (batch, *sizes)


def _noise(shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    sizes: list[Any] = [shape[0] or 2, *shape[1:]]
    return np.random.default_rng(0).normal(size=sizes).astype(np.float32)


def _prepared(model: keras.Model, images: Sequence[Path], shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    if not isinstance(model, Network) or "preprocessing" not in model.metadata:
        raise UserError("the model does not say how its images are prepared: leave --check out, for noise")
    size = shape[1:3]
    assert size[0] is not None
    assert size[1] is not None
    batch = np.stack([prepared_image(model, path, (size[0], size[1])) for path in images])
    if shape[0] is None or len(batch) % shape[0] == 0:
        return batch
    raise UserError(f"{len(batch)} images: the network takes them {shape[0]} at a time")


def _outputs(model: keras.Model, images: NDArray[np.float32], batch: int | None) -> NDArray[np.float32]:
    step = batch or AT_ONCE
    parts = [model(images[start : start + step], training=False) for start in range(0, len(images), step)]
    return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts])


def _run_worker(folder: Path, request: dict[str, Any], writer: str) -> dict[str, Any]:
    """Let a second process export, and return what it found."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    environment = {
        **os.environ,
        "KERAS_BACKEND": writer,
        "GROUPWISE_CORE": "0",
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",  # the file is for any device, and exported on the one that is always there
    }
    root = str(Path(groupwise.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, root, str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except OSError:
        lines = done.stderr.strip().splitlines() or ["nothing was said"]
        raise UserError(
            f"{request['title']} could not be written: the process ended with {done.returncode}: {lines[-1]}"
        ) from None
    if "error" in result:
        raise UserError(result["error"])
    return result


def _put_in_place(form: Format, folder: Path, path: Path) -> int:
    """Give what was written its name, in place of what had it, and return the size of it all in bytes."""
    written = folder / path.name
    if not form.ending:
        if path.exists():
            path.rename(folder / "replaced")
        written.rename(path)
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    size = 0
    for ending in (*form.beside, form.ending):
        part = written.with_suffix(ending)
        size += part.stat().st_size
        os.replace(part, path.with_suffix(ending))  # noqa: PTH105 - atomic
    return size
