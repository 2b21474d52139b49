"""`groupwise models`, `describe` and `routing`: what there is, what it costs, and how it runs."""

from collections import Counter
from typing import Annotated

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import Console, Listing, make_console, say
from groupwise.cli.options import Backend, ImageSize, ModelArguments, left_open, parse_arguments, parse_size
from groupwise.errors import UserError

NAMED = 8


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
    model: Annotated[str, typer.Argument(help="A network's name, any model's file, or a run's folder.")],
    classes: Annotated[int | None, left_open("How many classes.", min=1)] = None,
    image_size: ImageSize = None,
    channels: Annotated[int | None, left_open("1 for grey images, 3 for colour.", min=1)] = None,
    argument: ModelArguments = None,
    backend: Backend = None,
) -> None:
    """Show a network's layers: output shape, parameters and multiply-adds (MACs) of each, and the totals.

    Example: groupwise describe resnext50_32x4d --image-size 160 -a form=b
    """
    size, arguments = parse_size(image_size), parse_arguments(argument)
    settle_backend(backend)
    from groupwise.inference.networks import named_model
    from groupwise.models import describe as count

    description = count(named_model(model, size, channels, classes, arguments))
    table = Listing("layer", "kind", show_footer=True)
    table.columns[0].footer = description.name
    table.add_column("output", justify="right")
    # Both totals are what the papers' tables compare: batch norm's moving statistics are no parameters there.
    table.add_column("parameters", f"{description.parameters:,}", justify="right")
    macs = f"{'at least ' if description.uncounted else ''}{description.counted_macs:,}"
    table.add_column("MACs", macs, justify="right")
    for row in description.rows:
        table.add_row(*row.cells())
    console = make_console()
    console.print(table)
    say(
        console,
        f"{description.trainable_parameters:,} trainable parameters ({description.parameters:,} with the moving "
        f"statistics of batch norm), {macs} MACs for one image",
    )
    if description.uncounted:
        names = ", ".join(description.uncounted[:NAMED])
        say(
            console,
            f"not counted, since their sizes are unknown: the MACs of {len(description.uncounted)} layers ({names})",
        )


def routing(
    model: Annotated[str | None, typer.Argument(help="A network's name, any model's file, or a run's folder.")] = None,
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
    from groupwise.inference.networks import named_model
    from groupwise.ops import explain_routing
    from groupwise.rewrite.inventory import convolutions, unrouted
    from groupwise.routing import explain

    console = make_console()
    if model is not None:
        runtime, network = backends.active.runtime(), named_model(model, size, arguments=arguments)
        routes = Counter(str(explain(spec, runtime)) for spec in convolutions(network))
        routes += unrouted(network)
        for text, count in routes.items():
            _say_lines(console, f"{count} x {text}")
        if not routes:
            say(console, f"{model} has no convolutions")
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


def _parse_shape(text: str) -> tuple[int, int, int]:
    try:
        height, width, channels = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise UserError(f"--input {text}: must be height,width,channels such as 56,56,128") from None
    return height, width, channels
