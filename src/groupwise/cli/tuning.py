"""`groupwise tune`: which algorithm is the fastest on this machine, measured, stored, shown and forgotten."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import Console, Listing, Styled, make_console, say
from groupwise.cli.options import Backend, BatchSize, ImageSize, ModelArguments, parse_arguments, parse_size
from groupwise.errors import UserError
from groupwise.frameworks import FRAMEWORKS
from groupwise.interruption import Interrupted
from groupwise.machine import cache_folder

if TYPE_CHECKING:
    from groupwise.routing.tuning import Choice
    from groupwise.spec import ConvSpec


def tune(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A network's name, any model's file or a run's folder: measure exactly its convolutions. "
            "Default: every kind of convolution.",
            show_default=False,
        ),
    ] = None,
    batch_size: BatchSize = 16,
    image_size: ImageSize = None,
    argument: ModelArguments = None,
    show: Annotated[bool, typer.Option("--show", help="Measure nothing; show what is stored.")] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="Measure nothing; forget what is stored, of --backend or of all.")
    ] = False,
    backend: Backend = None,
) -> None:
    """Measure which algorithm is the fastest here for each kind of convolution, and run that one from now on.

    It takes a minute or two, for one backend; a quiet machine measures best. Ctrl-C leaves what was stored before.

    Examples: groupwise tune --backend jax

    groupwise tune resnext50_32x4d --image-size 224 --batch-size 16
    """
    if show and clear:
        raise UserError("tune: choose one of --show and --clear")
    if model is not None and clear:
        raise UserError(f"tune: --clear takes no network; leave out {model}")
    if model is None and (image_size or argument):
        raise UserError("tune: --image-size and --argument belong to a network; name one, such as resnext50_32x4d")
    if clear:
        _clear(backend)
        return
    size, arguments = parse_size(image_size), parse_arguments(argument)
    name = settle_backend(backend)
    from groupwise import backends, routing
    from groupwise.inference.networks import named_model
    from groupwise.rewrite.inventory import convolutions
    from groupwise.routing import measuring, tuning

    specs = [] if model is None else list(convolutions(named_model(model, size, arguments=arguments)))
    if model is not None and not specs:
        raise UserError(f"tune: {model} has no convolutions of ours; `groupwise accelerate` puts them in a model")
    if show:
        _show(name, specs)
        return
    tuning.check_folder()
    if any(None in spec.input_shape[1:] for spec in specs):
        raise UserError(f"tune: {model} takes images of any size: save it with an input shape, and tune that")
    subjects = measuring.subjects(batch_size)
    if specs:
        subjects = {
            routing.exact_name(spec): [replace(spec, input_shape=(batch_size, *spec.input_shape[1:]))] for spec in specs
        }
    console, version = make_console(), backends.active.version
    what = "convolutions" if specs else "kinds of convolution"
    say(console, f"measuring {len(subjects)} {what} on {name} {version}, forward and gradients, batch {batch_size}")
    choices = _measure(subjects, console)
    path = tuning.store(name, version, choices)
    console.print(_table(choices))
    say(console, f"stored in {path}; `groupwise routing` says what runs, `groupwise tune --clear` forgets it")
    if os.environ.get("GROUPWISE_TUNING") == "0":
        say(console, "it is ignored as long as GROUPWISE_TUNING is 0")


def _show(name: str, specs: Sequence["ConvSpec"]) -> None:
    """Show what is stored for a backend; with convolutions, what of it holds for these."""
    from groupwise import backends, routing
    from groupwise.routing import tuning

    console, stored = make_console(), tuning.current(name, backends.active.version)
    if stored is None:
        say(console, f"nothing that holds here is stored for {name}; to measure: groupwise tune --backend {name}")
        return
    own = {found for spec in specs for found in (routing.exact_name(spec), routing.kind(spec))}
    console.print(_table({found: choice for found, choice in stored.choices.items() if not specs or found in own}))
    say(console, f"stored in {tuning.path(name)}")


def _measure(subjects: Mapping[str, list["ConvSpec"]], console: Console) -> dict[str, "Choice"]:
    """Return the choice for each of the subjects, with a moving bar where someone looks at a terminal."""
    from groupwise import backends
    from groupwise.ops.algorithms import training_step
    from groupwise.routing.measuring import choose

    description = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(bar_width=16), MofNCompleteColumn(), TimeElapsedColumn(), description)
    choices = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(subjects))
        try:
            for subject, specs in subjects.items():
                progress.update(task, description=subject)
                choices[subject] = choose(specs, backends.active.runtime, training_step)
                progress.advance(task)
        except KeyboardInterrupt:
            raise Interrupted("stopped: nothing was stored, and what was stored before is as it was") from None
    return choices


def _table(choices: Mapping[str, "Choice"]) -> Listing:
    """Return a row a choice; the times are multiples of the shortest."""
    algorithms = dict.fromkeys(name for choice in choices.values() for name, _ in choice.times)
    table = Listing("convolution", "runs", "built-in list")
    for name in algorithms:
        table.add_column(name, justify="right")
    table.add_column("measured")
    for subject, choice in choices.items():
        times = {name: f"{time:.2f}" for name, time in choice.times}
        cells = (Styled(times.get(name, ""), "bold" if name == choice.algorithm else "") for name in algorithms)
        table.add_row(subject, Styled(choice.algorithm, "bold"), choice.built_in, *cells, choice.date)
    return table


def _clear(backend: str | None) -> None:
    from groupwise.routing import tuning

    if backend is not None and backend not in FRAMEWORKS:
        raise UserError(f"backend {backend!r} (--backend): must be one of {', '.join(FRAMEWORKS)}")
    files = tuning.clear((backend,) if backend else tuple(FRAMEWORKS))
    for text in [f"removed {file}" for file in files] or [f"nothing is stored in {cache_folder()}"]:
        say(make_console(), text)
