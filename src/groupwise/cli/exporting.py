"""`groupwise export`: a network for ONNX Runtime, OpenVINO, TensorFlow or LiteRT, checked there."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import make_console, note, print_json, print_lines
from groupwise.cli.options import Backend, ImageSize, Json, left_open, parse_size
from groupwise.data.image_paths import image_paths
from groupwise.export.formats import FORMATS, installing
from groupwise.texts import any_of
from groupwise.writing import expanded

if TYPE_CHECKING:
    from groupwise.export.exporting import Exported
    from groupwise.export.formats import Format


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Any model's file, a run's folder, or a network that `groupwise models` lists, with fresh weights.",
        ),
    ],
    format: Annotated[str, typer.Option(help=f"{any_of(form.name for form in FORMATS)}.")] = "onnx",  # noqa: A002
    output: Annotated[
        str | None,
        left_open(
            "The file to write. Default: in the current folder, MODEL's name with the format's ending.", metavar="FILE"
        ),
    ] = None,
    check: Annotated[
        list[str] | None,
        left_open(
            "Image files, folders or patterns to compare the outputs on; may be repeated. Default: noise.",
            metavar="IMAGE",
        ),
    ] = None,
    image_size: ImageSize = None,
    json: Json = False,
    backend: Backend = None,
) -> None:
    """Write a network for another runtime, run it there and compare its outputs.

    A grouped convolution stays one operation of the format. A second process writes the file, on a backend of Keras
    that can; what is compared with is the network on --backend.

    Examples: groupwise export runs/photos --format onnx --output photos.onnx --check holiday/

    groupwise export lite0.keras --format litert
    """
    from groupwise.export.formats import checked_output, choose_writer, find_format

    size, form = parse_size(image_size), find_format(format)
    paths = image_paths(check or [], recursive=True, on_note=note)
    target = _default_output(model, form) if output is None else expanded(output)
    choose_writer(form)
    checked_output(form, target)
    settle_backend(backend)
    from groupwise.export import export_model

    begun = time.monotonic()
    done = export_model(model, target, form.name, paths, size)
    if json:
        print_json(done.as_dict())
    else:
        _show(done, form, target, bool(paths), time.monotonic() - begun)


def _default_output(model: str, form: "Format") -> Path:
    """Return NAME.onnx in the current folder, for NAME.keras, NAME.h5, the folder of a run, or a network's name."""
    path = expanded(model).absolute()
    name = path.stem if path.suffix in (".keras", ".h5", ".hdf5") else path.name
    return Path(name + (form.ending or ".savedmodel"))


def _show(done: "Exported", form: "Format", target: Path, real: bool, seconds: float) -> None:
    images = f"{done.images} image{'s' if done.images > 1 else ''}{'' if real else ' of noise'}"
    if done.difference is None:
        check = f"not run: the runtime is not installed ({installing(form.runner)})"
    else:
        check = f"outputs differ by {done.difference:.1e} of the largest one, on {images}"
    lines = {
        "output": f"{target}, {done.size / 1e6:,.1f} MB, {form.title} through {done.backend}, {seconds:.0f} s",
        "graph": f"{len(done.groups)} convolutions, {done.grouped} of them grouped",
        "check": check,
    }
    if done.widened:
        lines["types"] = f"{len(done.widened)} layers of half precision compute in float32 in the file"
    print_lines(make_console(), lines)
