"""The second process of an export: it reads a model, writes the file, counts its convolutions and runs it.

It runs on the backend that can write the format, without the C core, whose operations no other runtime knows.
"""

import importlib
import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

from groupwise.errors import UserError, first_line
from groupwise.export.formats import Format, find_format
from groupwise.export.graphs import keep_openvino_output
from groupwise.export.precision import relative_difference, widen
from groupwise.export.signature import Signature, structures
from groupwise.keras_private import layers_within
from groupwise.layers.stock import CONVOLUTIONS
from groupwise.models.reading import load_model
from groupwise.rewrite import accelerate


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
        types = " with {dtype} input and {output_dtype} output".format(**request["signature"])
        result = {"error": f"{request['title']} could not be written{types}: {first_line(error)[:300]}"}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def _export(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    form = find_format(request["format"])
    model = _read_model(request)
    signature = Signature(**{name: _tuple(value) for name, value in request["signature"].items()})
    with np.load(folder / "samples.npz") as arrays:
        samples = [
            {name: arrays[f"{name}{place}"] for name in request["arrays"]} for place in range(request["samples"])
        ]
    path = folder / request["name"]
    try:
        _write(form, path, model, signature, signature.batches(samples[0]["inputs"])[0])
        groups, run = pkgutil.resolve_name(form.inspect)(path)
        differences = run and _compare(run, samples, signature)
        if signature.any_size and any(value > request["limits"][name] for name, value in (differences or {}).items()):
            raise UserError("its outputs are others than the network's")
        return {"groups": groups, "differences": differences}
    except Exception as error:
        if not signature.any_size:
            raise
        raise UserError(
            f"{form.title} cannot hold this network for images of any size ({first_line(error)[:200]}): "
            f"{request['say_size']}"
        ) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read_model(request: dict[str, Any]) -> Any:
    """Return the model as it is written: no layer computes in half precision, and ours in the framework's own way."""
    sys.path += request["paths"]
    for module in request["modules"]:
        importlib.import_module(module)
    model = load_model(Path(request["model"]))
    if keras.backend.backend() == "tensorflow":
        if any(map(_is_compiled, layers_within(model))):
            model = accelerate(model)
        framework = importlib.import_module("groupwise.backends.tensorflow.export")
        framework.use_plain_arguments()
        framework.use_plain_names(model)
    widen(model)
    for layer in layers_within(model):
        if isinstance(layer, CONVOLUTIONS):
            layer.algorithm = "native"
    return model


def _is_compiled(layer: Any) -> bool:
    """Return whether TensorFlow would compile a layer by XLA within the file, which no other runtime reads."""
    return isinstance(layer, keras.layers.Conv2D) and layer.groups > 1 and not isinstance(layer, CONVOLUTIONS)


def _write(form: Format, path: Path, model: Any, signature: Signature, images: Any) -> None:
    """Write the file, its input and output of the signature's types, traced on images where that is how it is made."""
    structure, _ = structures(model)

    def run(tensor: Any) -> Any:
        outputs = model(keras.tree.pack_sequence_as(structure, [tensor]), training=False)
        return keras.ops.cast(keras.tree.flatten(outputs)[0], signature.output_dtype)

    if keras.backend.backend() == "torch":
        writers = importlib.import_module("groupwise.backends.torch.export").WRITERS
        writers[form.name](path, model, run, images, signature)
        return
    name = signature.name
    if form.name != "openvino":
        name = importlib.import_module("groupwise.backends.tensorflow.export").plain_name(name)
    spec = keras.InputSpec(shape=signature.shape, dtype=signature.dtype, name=name)
    model = _Inference(model, signature.output_dtype)
    model(keras.tree.pack_sequence_as(structure, [images]))  # the exporters ask whether it ever ran
    given = [keras.tree.pack_sequence_as(structure, [spec])]
    model.export(str(path), format=form.keras_name, verbose=False, input_signature=given)
    if form.name == "openvino":
        keep_openvino_output(path, signature.output_name)


class _Inference(keras.Model):
    """A model that always infers, with outputs of one type; Keras's exporters let augmenting layers augment."""

    def __init__(self, model: Any, dtype: str) -> None:
        super().__init__(autocast=False, name="inference")
        self.model, self.output_dtype = model, dtype

    def call(self, inputs: Any) -> Any:
        outputs = self.model(inputs, training=False)
        return keras.tree.map_structure(lambda tensor: keras.ops.cast(tensor, self.output_dtype), outputs)


def _compare(run: Any, samples: list[dict[str, Any]], signature: Signature) -> dict[str, float]:
    """Return the largest differences between the file's outputs and the arrays of each name beside the inputs."""
    found: dict[str, float] = {}
    for sample in samples:
        outputs = np.concatenate([np.asarray(run(batch)) for batch in signature.batches(sample["inputs"])])
        if outputs.dtype != signature.output_dtype:
            raise UserError(f"the file gives {outputs.dtype}, the network {signature.output_dtype}")
        for name in sample.keys() - {"inputs"}:
            found[name] = max(found.get(name, 0.0), relative_difference(outputs, sample[name]))
    return found
