"""The second process of an export: it reads a model, writes the file, counts its convolutions and runs it.

It runs on the backend that can write the format, without the C core, whose operations no other runtime knows.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

from groupwise.errors import UserError
from groupwise.export.formats import Format, find_format
from groupwise.export.graphs import inspect_onnx, inspect_openvino
from groupwise.models.saved import load_model
from groupwise.rewrite import accelerate

AT_ONCE = 16


def main(name: str) -> None:
    """Do what a folder's request.json asks, and write result.json there: what was found, or an "error"."""
    folder = Path(name)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        result = _export(folder, request)
    except UserError as error:
        result = {"error": str(error)}
    except Exception as error:  # whatever the converters raise
        import traceback

        traceback.print_exc()
        text = str(error).strip() or type(error).__name__
        result = {"error": f"{request['title']} could not be written: {text.splitlines()[0][:300]}"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _export(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    form = find_format(request["format"])
    model = load_model(Path(request["model"]))
    if any(type(layer) is keras.layers.Conv2D and layer.groups > 1 for layer in model._flatten_layers()):
        # On TensorFlow, Keras's own would be compiled by XLA within the file, which no other runtime reads.
        model = accelerate(model)
    prepare_layers(model, algorithm="native")
    with np.load(folder / "images.npz") as arrays:
        images, expected = arrays["images"], arrays["outputs"]
    shape = (request["batch"], *images.shape[1:])
    # Keras's exporters ask whether the model was ever called.
    model(images[:1] if shape[0] is None else images[: shape[0]], training=False)
    path = folder / request["name"]
    signature = [keras.InputSpec(shape=shape, dtype="float32", name=model.inputs[0].name if model.inputs else "image")]
    model.export(str(path), format=form.keras_name, verbose=False, input_signature=signature)
    groups, run = _inspect(form, path)
    difference = None
    if run is not None:
        step = shape[0] or AT_ONCE
        parts = [run(images[start : start + step]) for start in range(0, len(images), step)]
        difference = relative_difference(np.concatenate(parts), expected)
    return {"groups": groups, "difference": difference}


def _inspect(form: Format, path: Path) -> tuple[list[int], Any]:
    if form.name == "onnx":
        return inspect_onnx(path)
    if form.name == "openvino":
        return inspect_openvino(path)
    module = importlib.import_module("groupwise.backends.tensorflow_export")
    inspection: tuple[list[int], Any] = getattr(module, f"inspect_{form.name}")(path)
    return inspection


def prepare_layers(model: Any, algorithm: str | None = None) -> None:
    """Let all layers compute in float32, and our convolutions by `algorithm`, or as they are where that is None.

    Raises:
        UserError: the weights are no float32.
    """
    for variable in model.variables:
        if "float" in variable.dtype and variable.dtype != "float32":
            raise UserError(f"the weights are {variable.dtype}: only networks with float32 weights are exported")
    for layer in model._flatten_layers():
        layer.dtype_policy = "float32"
        if algorithm is not None and hasattr(layer, "algorithm"):
            layer.algorithm = algorithm


def relative_difference(outputs: Any, expected: Any) -> float:
    """Return the largest difference of outputs, relative to the largest of those expected."""
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        return float("inf")
    return float(np.abs(outputs - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
