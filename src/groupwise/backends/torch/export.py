"""ONNX and OpenVINO files that PyTorch writes: a model's run on some images, traced."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class _Traced(torch.nn.Module):
    """A module from one tensor to one; Keras's own are from and to any structure."""

    def __init__(self, model: Any, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, images: torch.Tensor) -> Any:
        return self.run(images)


def write_onnx(path: Path, model: Any, run: Callable[[Any], Any], images: Any, signature: Any) -> None:
    """Write an ONNX file of `run`, a function of the model's from a tensor to a tensor, traced on images.

    Sizes that are None in the signature's shape are of any size in the file.
    """
    names = {0: "batch", signature.axes[0]: "height", signature.axes[1]: "width"}
    free = {axis: names[axis] for axis, size in enumerate(signature.shape) if size is None}
    dynamic = {signature.name: free, signature.output_name: {0: "batch"}} if free else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constants: the file is run on others
        torch.onnx.export(
            _Traced(model, run).eval(),
            (torch.from_numpy(images),),
            str(path),
            input_names=[signature.name],
            output_names=[signature.output_name],
            dynamic_axes=dynamic,
            dynamo=False,
        )


def write_openvino(path: Path, model: Any, run: Callable[[Any], Any], images: Any, signature: Any) -> None:
    """Write an OpenVINO file as `write_onnx` does."""
    import openvino

    example = torch.from_numpy(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_Traced(model, run).eval(), example)
        converted = openvino.convert_model(traced, example_input=example)
    converted.reshape(openvino.PartialShape([-1 if size is None else size for size in signature.shape]))
    converted.inputs[0].tensor.set_names({signature.name})
    converted.inputs[0].get_node().set_friendly_name(signature.name)
    converted.outputs[0].tensor.set_names({signature.output_name})
    openvino.save_model(converted, str(path), compress_to_fp16=False)


WRITERS = {"onnx": write_onnx, "openvino": write_openvino}
"""By the name of the format."""
