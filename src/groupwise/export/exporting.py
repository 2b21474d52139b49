"""Exporting: what is asked for is checked here, a second process writes and runs it, and the file gets its name."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import groupwise
from groupwise.errors import UserError, argument, first_line
from groupwise.export.formats import Format, checked_output, choose_writer, find_format
from groupwise.export.precision import check_quantized, check_types, half_layers, tolerances, widen
from groupwise.export.signature import TRIED_SIZES, Signature, run_model, say_size, signature_of
from groupwise.inference.networks import is_saved, model_path, named_model
from groupwise.inference.preprocessing import prepared_image
from groupwise.keras_private import layers_within
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.models.reading import load_model
from groupwise.writing import PARTIAL, writing

_PROGRAM = "import sys; sys.path.append(sys.argv[1]); from groupwise.export.worker import main; main(sys.argv[2])"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file, or SavedModel's folder.
        format: its name.
        size: in bytes, of all that belongs to it.
        backend: the backend of Keras that wrote it.
        groups: of each convolution in the file.
        images: how many the file was run on.
        difference: the largest between its outputs and the network's, relative to the largest output; None where the
            format's runtime is not installed.
        widened: the names of the layers that compute in half precision in the network, and in float32 in the file.
    """

    path: Path
    format: str
    size: int
    backend: str
    groups: tuple[int, ...]
    images: int
    difference: float | None
    widened: tuple[str, ...] = ()

    @property
    def grouped(self) -> int:
        """How many of the convolutions have several groups."""
        return sum(groups > 1 for groups in self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON, layers and convolutions counted."""
        return {
            "output": str(self.path),
            "format": self.format,
            "backend": self.backend,
            "bytes": self.size,
            "convolutions": len(self.groups),
            "grouped": self.grouped,
            "images": self.images,
            "difference": self.difference,
            "widened": len(self.widened),
        }


def export_model(
    model: Any,
    path: str | Path,
    format: str = "onnx",  # noqa: A002 - Keras's own name for it
    images: Sequence[Path] = (),
    image_size: tuple[int, int] | None = None,
) -> Exported:
    """Write a network for another runtime, run it there and compare the outputs.

    A grouped convolution stays one operation, and none of this package's own is in the file. Inputs and outputs keep
    their types and names, batches and images of any size stay that; what computes in half precision computes in float32
    in the file. A second process writes it, on a backend of Keras that can.

    Args:
        model: a Keras model from images to one output, a .keras or .h5 file, a run's folder, or a name of
            `groupwise.models.list_models()` for fresh weights.
        path: the file to write; a folder for "savedmodel".
        format: "onnx", "savedmodel", "litert" or "openvino".
        images: files to compare the outputs on, prepared as the network wants them; none is noise.
        image_size: (height, width), to fix that of a network of any size.

    Raises:
        UserError: bad arguments, what is missing here (and how to install it), a network that cannot be exported, or
            outputs that differ by more than 1e-4 of the largest one (more where the model has coarser types, see
            `precision.tolerances`): the file is there then.

    Examples:
        >>> export_model("mnist_cnn_grouped", "mnist.onnx").groups  # doctest: +SKIP
        (1, 4, 1, 8, 1, 8, 1, 16, 1)
    """
    form = find_format(format)
    writer = choose_writer(form)
    path = checked_output(form, path)
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=PARTIAL) as name:
        folder = Path(name)
        network, source = _network_and_source(model, folder, image_size)
        check_types(network)
        check_quantized(network, form)
        signature = signature_of(network, image_size)
        given = _prepared(network, images, signature)
        samples, widened = _samples(network, source, signature, given)
        limits = tolerances(network)
        request = {
            "model": str(source),
            "format": form.name,
            "title": form.title,
            "name": path.name,
            "signature": asdict(signature),
            **_saved_samples(samples, folder),
            "limits": limits,
            "say_size": say_size(),
            "modules": _own_modules(network),
            "paths": [str(Path(entry).absolute()) for entry in sys.path],
        }
        result = _run_worker(folder, request, writer)
        size = _put_in_place(form, folder, path)
    differences = result["differences"] or {}
    _refuse_differences(path, differences, limits)
    count = len(given) or len(samples[0]["inputs"])
    return Exported(path, form.name, size, writer, tuple(result["groups"]), count, differences.get("outputs"), widened)


def _network_and_source(model: Any, folder: Path, image_size: tuple[int, int] | None) -> tuple[keras.Model, Path]:
    """Return a model and its .keras file; one that is in memory is saved into the folder."""
    if isinstance(model, str | Path):
        if is_saved(model):
            path = model_path(model).absolute()
            return load_model(path), path
        model = named_model(str(model), image_size)
    for layer in layers_within(model):
        if isinstance(layer, keras.layers.Lambda):
            raise UserError(
                f"layer {layer.name!r} is a Lambda, a program that no file may hold: write its function as keras.ops "
                "on the tensors, or as a layer's class"
            )
    source = folder / "source.keras"
    # What it was compiled with is not exported, and need not be anything that can be saved.
    vars(model)["get_compile_config"] = lambda: None
    try:
        model.save(source)
    except OSError:
        raise
    except Exception as error:  # of somebody's own classes
        raise UserError(
            f"model {model.name!r} cannot be saved, which exporting begins with: {first_line(error)}"
        ) from error
    finally:
        del vars(model)["get_compile_config"]
    return model, source


def _own_modules(model: keras.Model) -> list[str]:
    """Return the modules of layers that are neither Keras's nor ours: the second process imports them."""
    modules = set()
    for layer in layers_within(model):
        kind = type(layer)
        if kind.__module__.split(".")[0] in ("keras", "groupwise"):
            continue
        if kind.__module__ == "__main__":
            raise UserError(
                f"layer {layer.name!r} is of class {kind.__name__}, which the running program itself defines: put the "
                "class into a module of its own, which a second process can import"
            )
        modules.add(kind.__module__)
    return sorted(modules)


def _prepared(model: keras.Model, images: Sequence[Path], signature: Signature) -> NDArray[Any]:
    """Return image files as the model wants them; none, for none."""
    if not images:
        return np.empty((0,))
    if not isinstance(model, Network | RewrittenNetwork) or "preprocessing" not in model.metadata:
        nothing = f"leave {argument('images')} out"
        raise UserError(f"the model does not say how its images are prepared: {nothing}, for noise")
    if signature.any_size:
        raise UserError(f"the network takes images of any size: {say_size()}")
    height, width = (signature.shape[axis] for axis in signature.axes)
    assert height is not None
    assert width is not None
    batch = np.stack([prepared_image(model, path, (height, width)) for path in images])
    if signature.shape[0] is None or len(batch) % signature.shape[0] == 0:
        return batch
    raise UserError(f"{len(batch)} images: the network takes them {signature.shape[0]} at a time")


def _samples(
    model: keras.Model, source: Path, signature: Signature, given: NDArray[Any]
) -> tuple[list[dict[str, NDArray[Any]]], tuple[str, ...]]:
    """Return inputs and the model's outputs, noise first, and the names of the layers that the file widens.

    The outputs are the model's as it was given, and those of a copy that is widened as the file is.
    """
    dtype = signature.output_dtype
    samples = []
    for size in TRIED_SIZES if signature.any_size else TRIED_SIZES[:1]:
        noise = signature.noise(size)
        try:
            outputs = run_model(model, signature.batches(noise), dtype)
        except Exception:
            if not signature.any_size:
                raise
            continue  # a network of any size need not take every size
        samples.append({"inputs": noise, "outputs": outputs})
    if len(samples) < (2 if signature.any_size else 1):
        raise UserError(f"the network takes images of any size, but none that was tried: {say_size()}")
    if len(given):
        samples.append({"inputs": given, "outputs": run_model(model, signature.batches(given), dtype)})
    for sample in samples:
        if not np.isfinite(sample["outputs"]).all():
            raise UserError("the network's own outputs are not finite: there is nothing to compare the file's with")
    names = tuple(
        layer.name for layer in half_layers(model) if not isinstance(layer, keras.Model | keras.layers.InputLayer)
    )
    if names:
        copy = load_model(source)
        widen(copy)
        for sample in samples:
            sample["widened"] = run_model(copy, signature.batches(sample["inputs"]), dtype)
    return samples, names


def _saved_samples(samples: list[dict[str, NDArray[Any]]], folder: Path) -> dict[str, Any]:
    """Save the samples into the folder, and return what a request says of them."""
    arrays = {f"{name}{place}": array for place, sample in enumerate(samples) for name, array in sample.items()}
    np.savez(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
    return {"arrays": list(samples[0]), "samples": len(samples)}


def _refuse_differences(path: Path, differences: Mapping[str, float], limits: Mapping[str, float]) -> None:
    """Raise UserError where a file's outputs are too far from the network's."""
    for name, difference in differences.items():
        if not difference <= limits[name]:
            computed = " computed in float32" if name == "widened" else ""
            raise UserError(
                f"{path} was written, but its outputs differ from the network's{computed} by {difference:.1e} of the "
                f"largest one, more than {limits[name]:.0e}"
            )


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
    except (OSError, ValueError):  # it wrote none, or on a full disk a part of it
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
