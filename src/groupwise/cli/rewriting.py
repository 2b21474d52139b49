"""`groupwise accelerate` and `groupwise factorize`: a saved model, rewritten."""

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import Listing, Styled, make_console, note, print_lines, say
from groupwise.cli.options import MOST, Backend, BatchSize, check_rate, left_open
from groupwise.cli.outputs import output_file, save_model
from groupwise.errors import UserError

if TYPE_CHECKING:
    import keras

    from groupwise.data import Dataset
    from groupwise.rewrite import Report

Output = Annotated[str | None, left_open("The .keras file to write.", metavar="FILE")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Any functional or sequential model: a .keras or .h5 file, or a run's folder."
    ),
]


def accelerate(
    model: Model,
    output: Output = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="For inference alone: fold batch norms into the convolutions.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the model before and after, on this machine and backend.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST, help="With --measure: examples a step.")] = 8,
    backend: Backend = None,
) -> None:
    """Put our convolutions in place of Keras's in any Keras model, and say what was replaced, and what not and why.

    The new model computes the same and is an ordinary Keras model; a program that loads it imports groupwise first.

    Examples: groupwise accelerate model.keras --output faster.keras --measure

    groupwise accelerate model.keras --fold --output for-inference.keras
    """
    path = None if output is None else output_file(output, ".keras", model)
    settle_backend(backend)
    from groupwise import rewrite
    from groupwise.inference.networks import read_model

    before = read_model(model)
    after = rewrite.accelerate(before)
    reports, lines = [rewrite.report_of(after)], {}
    if fold:
        after = rewrite.fold_batch_norm(after)
        reports.append(rewrite.report_of(after))
    for report in [report for report in reports if report.changes or report.left] or reports[:1]:
        _show(report)
    if measure:
        with make_console(stderr=True).status("measuring"):
            speed = rewrite.measure(before, after, batch_size)
        said = f"inference {speed.inference:.2f} times as fast" if fold else str(speed)
        lines["speed"] = f"{said} (batch {batch_size})"
    _save(after, path, lines)


def factorize(
    model: Model,
    rank: Annotated[int, typer.Option(min=1, help="Depthwise filters for each channel: the depth multiplier.")] = 1,
    layers: Annotated[str, typer.Option(help='Which layers, as a pattern of their names: "stage3*".')] = "*",
    data: Annotated[str | None, left_open("As for `groupwise train`: say the accuracy before and after.")] = None,
    finetune_epochs: Annotated[
        int, typer.Option(min=0, max=MOST, help="With --data: passes over its training images.")
    ] = 0,
    learning_rate: Annotated[float, typer.Option(help="The highest one of the fine-tuning.")] = 0.01,
    batch_size: BatchSize = 64,
    output: Output = None,
    backend: Backend = None,
) -> None:
    """Put the nearest separable convolution in place of each dense one, and say what is saved and what is lost.

    Example: groupwise factorize runs/digits/last.keras --rank 2 --data digits --finetune-epochs 3
    """
    path = None if output is None else output_file(output, ".keras", model)
    if finetune_epochs and data is None:
        raise UserError(f"--finetune-epochs {finetune_epochs}: name the images with --data")
    check_rate(learning_rate)
    dataset, notes = (None, []) if data is None else _dataset(data, model)
    settle_backend(backend)
    from groupwise import rewrite
    from groupwise.inference.networks import load_network, read_model
    from groupwise.keras_private import layers_within

    before: Any = read_model(model) if dataset is None else load_network(model)
    for text in notes:
        note(text)
    if not any(fnmatch.fnmatch(layer.name, layers) for layer in layers_within(before)):
        raise UserError(f"--layers {layers}: no layer has such a name; `groupwise describe {model}` lists them")
    after: Any = rewrite.dense_to_separable(before, rank, layers)
    _show(rewrite.report_of(after))
    lines = {}
    if dataset is not None:
        from groupwise.inference.evaluation import accuracy
        from groupwise.training.finetuning import finetune

        lines["before"] = f"{accuracy(before, dataset, batch_size):.2%} of the test images"
        lines["after"] = f"{accuracy(after, dataset, batch_size):.2%}"
        if finetune_epochs:
            with make_console(stderr=True).status(f"fine-tuning, {finetune_epochs} epochs"):
                finetune(after, dataset, finetune_epochs, learning_rate, batch_size)
            lines["tuned"] = f"{accuracy(after, dataset, batch_size):.2%} after {finetune_epochs} epochs"
    _save(after, path, lines)


def _dataset(data: str, model: str) -> tuple["Dataset", list[str]]:
    """Return the data set, divided as for the model's training, and what may mislead."""
    from groupwise.data import load_dataset
    from groupwise.inference.recorded import divide_for

    dataset, notes = divide_for(load_dataset(data), model)
    return dataset, [*dataset.notes, *notes]


def _show(report: "Report") -> None:
    console = make_console()
    table = Listing("layer", "before", "after", "")
    for change in report.changes:
        error = "" if change.error is None else f"relative error {change.error:.3f}"
        table.add_row(change.layer, change.before, change.after, ", ".join(filter(None, (change.note, error))))
    for left in report.left:
        table.add_row(left.layer, left.kind, Styled("left as it is", "dim"), left.reason)
    if table.row_count:
        console.print(table)
    else:
        say(console, "nothing to rewrite")
    for text in report.notes:
        say(console, text)


def _save(model: "keras.Model", path: Path | None, lines: dict[str, str]) -> None:
    if path is not None:
        save_model(model, path)
        lines["output"] = str(path)
    print_lines(make_console(), lines)
