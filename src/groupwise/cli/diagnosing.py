"""`groupwise diagnose`: why a network does not learn, and a model in which what can safely be mended is."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import Console, Listing, Styled, make_console, note, print_json, print_lines, say
from groupwise.cli.options import (
    Backend,
    BatchSize,
    ImageSize,
    Json,
    ModelArguments,
    check_rate,
    left_open,
    parse_arguments,
    parse_size,
)
from groupwise.cli.outputs import output_file, save_model
from groupwise.errors import UserError
from groupwise.writing import expanded

if TYPE_CHECKING:
    from groupwise.diagnosis import Diagnosis, LayerRow
    from groupwise.diagnosis.trial import Trial

_STYLES = {"STOPS": "bold red", "COSTS": "bold yellow", "LOOK": "bold"}


def diagnose(
    model: Annotated[str, typer.Argument(help="Any Keras model's file, a run's folder, or a network's name.")],
    data: Annotated[str | None, typer.Argument(help="As for `groupwise train`. Default: random images.")] = None,
    learning_rate: Annotated[
        float | None, left_open("That of the training. Default: that of the model's optimizer.")
    ] = None,
    apply: Annotated[
        str | None,
        left_open("Write the model with the safe cures: untrained kernels start as they should.", metavar="FILE"),
    ] = None,
    batch_norm: Annotated[
        bool, typer.Option("--batch-norm", help="With --apply: a batch norm behind each separable convolution, too.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show what each layer computes, and its gradients.")] = False,
    batch_size: BatchSize = 32,
    image_size: ImageSize = None,
    argument: ModelArguments = None,
    json: Json = False,
    backend: Backend = None,
) -> None:
    """Say why a network does not learn, before it is trained or after: what is wrong, where, and what to change.

    Examples: groupwise diagnose model.keras digits

    groupwise diagnose model.keras digits --apply mended.keras --batch-norm
    """
    if batch_norm and apply is None:
        raise UserError("--batch-norm: belongs to --apply")
    if learning_rate is not None:
        check_rate(learning_rate)
    path = None if apply is None else output_file(apply, ".keras", model, "apply")
    size, arguments = parse_size(image_size), parse_arguments(argument)
    from groupwise.data import load_dataset

    dataset = None if data is None else load_dataset(data)
    settle_backend(backend)
    from groupwise import diagnosis
    from groupwise.diagnosis.trial import Trial
    from groupwise.inference.networks import named_model

    network = named_model(model, size, arguments=arguments)
    trial = None if dataset is None else Trial.of(network, dataset, batch_size)
    for text in dataset.notes if dataset is not None else ():
        note(text)
    with make_console(stderr=True).status("looking at the model"):
        found = diagnosis.diagnose(
            network,
            None if trial is None else trial.some(),
            learning_rate=learning_rate,
            history=_history(model),
            class_names=None if trial is None else trial.dataset.class_names,
        )
    for text in found.notes:
        note(text)
    cures = {} if path is None else _cures(network, trial, batch_norm, path)
    if json:
        print_json({**_as_data(found), **cures})
        return
    console = make_console()
    _show(console, found)
    if layers:
        console.print(_table(found.rows))
    print_lines(console, cures)


def _history(model: str) -> dict[str, list[float]]:
    """Return the accuracies by epoch of a run; nothing where the model is none."""
    from groupwise.inference.run_folder import RunFolder

    metrics = RunFolder(expanded(model)).metrics
    if not metrics.is_file():
        return {}
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    judged = "validation_accuracy" if rows and "validation_accuracy" in rows[0] else "test_accuracy"
    columns = {"accuracy": "accuracy", "val_accuracy": judged}
    return {name: [float(row[column]) for row in rows if row.get(column)] for name, column in columns.items()}


def _cures(network: Any, trial: "Trial | None", batch_norm: bool, path: Any) -> dict[str, str]:
    """Write the mended model; return what was changed, and what the first epoch reaches before and after."""
    from groupwise.diagnosis import mend
    from groupwise.rewrite import report_of

    mended = mend(network, batch_norm)
    changes = report_of(mended).changes
    if not changes:
        note(f"nothing can be mended safely: {path} was not written")
        return {}
    save_model(mended, path)
    said = {"mended": f"{len(changes)} layers", "output": str(path)}
    if trial is not None:
        with make_console(stderr=True).status("training for one epoch, before and after"):
            before, after = trial.accuracy_after(1), replace(trial, model=mended).accuracy_after(1)
        said["trained"] = f"{before:.2%} of the test images after one epoch as it was, {after:.2%} as it is now"
    return said


def _show(console: Console, found: "Diagnosis") -> None:
    if not found.findings:
        say(console, str(found))
    for place, finding in enumerate(found.findings, start=1):
        console.print(Styled(f"{place}. {finding.name}", _STYLES[finding.weight.name]))
        say(console, f"   {finding.sentence}")
        say(console, f"   -> {finding.cure}")


def _table(rows: Sequence["LayerRow"]) -> Listing:
    """Return a row for each layer."""
    table = Listing("layer", "kind")
    for column in ("mean", "deviation", "signal", "dead", "gradient/weights", "update/weights", "fan-in"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row.mean, row.deviation, row.signal)
        shares = ("" if value is None else f"{value:.2g}" for value in (row.gradient, row.update))
        fan_in = "" if row.fan_in is None else f"{row.fan_in}, taken for {row.assumed_fan_in}"
        table.add_row(row.name, row.kind, *(f"{value:.3g}" for value in numbers), f"{row.dead:.0%}", *shares, fan_in)
    return table


def _as_data(found: "Diagnosis") -> Mapping[str, Any]:
    """Return a diagnosis as data for JSON."""
    findings = [{**asdict(finding), "weight": finding.weight.name.lower()} for finding in found.findings]
    return {"model": found.model, "findings": findings, "layers": [asdict(row) for row in found.rows]}
