"""`groupwise models`, `describe` and `routing`: what there is, what it costs, and how it runs."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.options import Backend, ImageSize, ModelArguments, parse_arguments, parse_size
from groupwise.console import Console, Listing, make_console, say
from groupwise.errors import UserError

if TYPE_CHECKING:
    from groupwise.models.network import Network
    from groupwise.spec import ConvSpec


def models(
    pattern: Annotated[str, typer.Argument(help='Which names, as a shell pattern: "*resnext*".')] = "*",
    costs: Annotated[bool, typer.Option(help="Build each network, and show its parameters and MACs. Slow.")] = False,
    backend: Backend = None,
) -> None:
    """List the networks by name.

    Example: groupwise models "*shufflenet*" --costs
    """
    settle_backend(backend)
    from groupwise.models import describe as count
    from groupwise.models import find, list_models
    from groupwise.models.registry import Variant

    names = list_models(pattern)
    if not names:
        raise UserError(f"no network's name matches {pattern!r}; `groupwise models` lists all")
    console = make_console()
    table = Listing("model", "family", "input")
    for column in ("classes", *(("parameters", "MACs") if costs else ())):
        table.add_column(column, justify="right")
    with console.status("building"):
        for name in names:
            variant: Variant = find(name)
            row = [name, variant.family, "x".join(map(str, variant.input_shape)), str(variant.num_classes)]
            if costs:
                description = count(name)
                row += [f"{description.trainable_parameters:,}", f"{description.macs:,}"]
            table.add_row(*row)
    console.print(table)


def describe(
    model: Annotated[str, typer.Argument(help="A network's name, a .keras file or a run's folder.")],
    classes: Annotated[int | None, typer.Option(help="How many classes.", show_default=False)] = None,
    image_size: ImageSize = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey images, 3 for colour.", show_default=False)] = None,
    argument: ModelArguments = None,
    backend: Backend = None,
) -> None:
    """Show a network's layers: output shape, parameters and multiply-adds (MACs) of each, and the totals.

    Example: groupwise describe resnext50_32x4d --image-size 160 -a form=b
    """
    size, arguments = parse_size(image_size), parse_arguments(argument)
    settle_backend(backend)
    from groupwise.models import describe as count

    description = count(find_network(model, size, arguments, classes, channels))
    table = Listing("layer", "kind", show_footer=True)
    table.columns[0].footer = description.name
    table.add_column("output", justify="right")
    # Both totals are what the papers' tables compare: batch norm's moving statistics are no parameters there.
    table.add_column("parameters", f"{description.parameters:,}", justify="right")
    table.add_column("MACs", f"{description.macs:,}", justify="right")
    for row in description.rows:
        shape = "x".join("?" if length is None else str(length) for length in row.output_shape[1:])
        table.add_row(row.name, row.kind, shape, f"{row.parameters:,}", f"{row.macs:,}" if row.macs else "")
    console = make_console()
    console.print(table)
    say(
        console,
        f"{description.trainable_parameters:,} trainable parameters ({description.parameters:,} with the moving "
        f"statistics of batch norm), {description.macs:,} MACs for one image",
    )


def routing(
    model: Annotated[str | None, typer.Argument(help="A network's name, a .keras file or a run's folder.")] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="H,W,C", help="An image's height, width and channels.")
    ] = None,
    kernel: Annotated[int, typer.Option(min=1, help="The kernel's side.")] = 3,
    groups: Annotated[int, typer.Option(min=1, help="How many groups the channels are cut into.")] = 1,
    filters: Annotated[int | None, typer.Option(min=1, help="Output channels; the input's by default.")] = None,
    strides: Annotated[int, typer.Option(min=1, help="Vertical and horizontal.")] = 1,
    dilation: Annotated[int, typer.Option(min=1, help="Distance between the kernel's taps.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    image_size: ImageSize = None,
    argument: ModelArguments = None,
    backend: Backend = None,
) -> None:
    """Say which algorithm runs each convolution of a network, or the one that the options describe, and why.

    Examples: groupwise routing shufflenet_g3_w1 --backend jax

    groupwise routing --input 56,56,128 --groups 32 --backend tensorflow
    """
    if (model is None) == (input_shape is None):
        raise UserError("routing: name a network, or describe one convolution with --input H,W,C")
    size, arguments = parse_size(image_size), parse_arguments(argument)
    settle_backend(backend)
    from groupwise import backends
    from groupwise.ops import explain_routing
    from groupwise.routing import explain

    console = make_console()
    if model is not None:
        runtime = backends.active.runtime()
        routes = Counter(str(explain(spec, runtime)) for spec in convolutions(find_network(model, size, arguments)))
        for text, count in routes.items():
            _say_lines(console, f"{count} x {text}")
        return
    height, width, in_channels = _parse_shape(input_shape or "")
    try:
        explanation = explain_routing(
            (None, height, width, in_channels),
            (kernel, kernel, max(in_channels // groups, 1), filters or in_channels),
            groups,
            strides,
            dilation_rate=dilation,
            dtype=dtype,
        )
    except ValueError as error:
        raise UserError(f"routing: {error}") from error
    _say_lines(console, str(explanation))


def _say_lines(console: Console, text: str) -> None:
    for line in text.splitlines():
        say(console, line)


def find_network(
    model: str,
    image_size: tuple[int, int] | None,
    arguments: dict[str, Any],
    classes: int | None = None,
    channels: int | None = None,
) -> "Network":
    """Return the network of that name, or the saved one."""
    from groupwise.models import create, find
    from groupwise.training.saved import load_network

    if model.endswith(".keras") or Path(model).is_dir():
        if classes or image_size or channels or arguments:
            raise UserError(f"{model} is a saved network: its classes, size and arguments are settled")
        return load_network(model)
    height, width, own_channels = find(model).input_shape
    shape = (*(image_size or (height, width)), channels or own_channels)
    try:
        return create(model, num_classes=classes, input_shape=shape, **arguments)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"model {model!r}: {str(error).strip().splitlines()[0]}") from error


def _parse_shape(text: str) -> tuple[int, int, int]:
    try:
        height, width, channels = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise UserError(f"--input {text}: must be height,width,channels such as 56,56,128") from None
    return height, width, channels


def convolutions(network: "Network") -> Iterator["ConvSpec"]:
    """Yield every convolution of a network, in its order; the batch is not known."""
    from groupwise.layers import DepthwiseConv2D, GroupedConv2D, SeparableConv2D
    from groupwise.spec import ConvSpec

    for layer in network.layers:
        if not isinstance(layer, (GroupedConv2D, DepthwiseConv2D, SeparableConv2D)):
            continue
        shape, dtype = tuple(layer.input.shape), layer.compute_dtype
        options = (layer.strides, layer.padding, layer.dilation_rate, dtype)
        if isinstance(layer, GroupedConv2D):
            yield ConvSpec.of(shape, tuple(layer.kernel.shape), layer.groups, *options)
            continue
        is_separable = isinstance(layer, SeparableConv2D)
        height, width, channels, multiplier = (layer.depthwise_kernel if is_separable else layer.kernel).shape
        yield ConvSpec.of(shape, (height, width, 1, channels * multiplier), channels, *options)
        if is_separable:
            between = (*layer.output.shape[:3], channels * multiplier)
            yield ConvSpec.of(between, tuple(layer.pointwise_kernel.shape), 1, dtype=dtype)
