"""Exported ONNX and OpenVINO files: their convolutions counted, and run in the runtimes that they are for."""

from pathlib import Path
from typing import Any

from groupwise.export.formats import is_installed

Inspection = tuple[list[int], Any]
"""The groups of each convolution, and a function from images to outputs, or None where no runtime is installed."""


def inspect_onnx(path: Path) -> Inspection:
    """Return the convolutions' groups of an ONNX file, and ONNX Runtime's function from images to outputs."""
    import onnx

    nodes = onnx.load(str(path)).graph.node
    groups = [
        next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        for node in nodes
        if node.op_type == "Conv"
    ]
    if not is_installed("onnxruntime"):
        return groups, None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return groups, lambda images: session.run(None, {name: images})[0]


def inspect_openvino(path: Path) -> Inspection:
    """Return the convolutions' groups of an OpenVINO file, and OpenVINO's function from images to outputs."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    kernels = {"Convolution": lambda shape: 1, "GroupConvolution": lambda shape: shape[0]}
    groups = [
        int(kernels[node.get_type_name()](node.input(1).get_shape()))
        for node in model.get_ops()
        if node.get_type_name() in kernels
    ]
    # A processor with bfloat16 instructions would compute in bfloat16.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return groups, lambda images: compiled(images)[0]


def keep_openvino_output(path: Path, name: str) -> None:
    """Give the first output of an OpenVINO file a name, and drop the others: sizes that nobody reads."""
    import openvino

    read = openvino.Core().read_model(str(path))
    model = openvino.Model(read.get_results()[:1], read.get_parameters(), read.get_friendly_name())
    model.outputs[0].tensor.set_names({name})
    other = path.with_name(f"named{path.suffix}")
    openvino.serialize(model, str(other))
    for ending in (".bin", path.suffix):
        other.with_suffix(ending).replace(path.with_suffix(ending))
