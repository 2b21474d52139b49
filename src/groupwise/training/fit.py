"""train(): from a plan and a data set to the folder of a run."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
from rich.console import Console

from groupwise import models, report
from groupwise.console import print_lines, say
from groupwise.data import Dataset, ImageBatches, Variation
from groupwise.data.record import SplitRecord, copies_in, held_to, record_of
from groupwise.errors import UserError
from groupwise.inference.evaluation import Evaluation, evaluate
from groupwise.inference.matching import with_classes
from groupwise.inference.preprocessing import make_batches
from groupwise.inference.recorded import SPLIT, divide_for, read_record
from groupwise.inference.run_folder import RunFolder, environment, read_json, write_json
from groupwise.models.network import Network
from groupwise.models.reading import vetted
from groupwise.training.bookkeeper import Bookkeeper, Judge, swap_average
from groupwise.training.diverging import StopTraining, diverged
from groupwise.training.interruption import Interruption, on_signals
from groupwise.training.optimizers import make_optimizer
from groupwise.training.plan import Plan, build_network
from groupwise.training.progress import ProgressBar
from groupwise.training.seed import set_seed
from groupwise.training.starting import are_published, start_from
from groupwise.training.stopped import Interrupted


@dataclass(frozen=True)
class RunSummary:
    """What came out of a training, as summary.json has it.

    Attributes:
        test_accuracy, test_top5, test_loss: of the last model (with averaged weights where the recipe averages).
        test_images: how many images were tested on.
        best_epoch, best_accuracy: of best.keras, by the split `judged_by`.
        judged_by: "validation" where the data has such a split, else "test".
        epochs: finished, in all.
        training_seconds: of all epochs' steps, without tests and saving.
        images_per_second: the last epoch's.
        share_waited: the last epoch's share of time in which there was no input.
        trainable_parameters, macs: of the network; MACs for one image.
        broken_images: the (name, reason) of every image that was skipped.
    """

    test_accuracy: float
    test_top5: float
    test_loss: float
    test_images: int
    best_epoch: int
    best_accuracy: float
    judged_by: str
    epochs: int
    training_seconds: float
    images_per_second: float
    share_waited: float
    trainable_parameters: int
    macs: int
    broken_images: list[tuple[str, str]]


@dataclass(frozen=True)
class _Session:
    """What belongs together while a training runs."""

    plan: Plan
    dataset: Dataset
    record: SplitRecord
    folder: RunFolder
    network: Network
    batches: ImageBatches
    judge: Judge
    console: Console
    rows: list[dict[str, float]]
    interruption: Interruption


def read_plan(output: Path) -> Plan:
    """Return the plan of the run in a folder. Raises UserError where there is none."""
    folder = RunFolder(output)
    folder.open(resume=True)
    return Plan.of(read_json(folder.recipe))


def train(
    plan: Plan,
    dataset: Dataset,
    output: Path,
    *,
    resume: bool = False,
    console: Console,
    announce: Callable[[Dataset], object] | None = None,
) -> RunSummary:
    """Train a network and leave all there is to know about it in a folder.

    Args:
        plan: `make_plan`'s, or `read_plan`'s to go on with a run, perhaps to another end (`extend_plan`).
        dataset: what the plan was made for.
        output: the run's folder: new or empty, or the run to go on with.
        resume: go on after the last finished epoch of the run in `output`. The result is that of a training
            without interruption, where the plan is the same.
        console: where progress is shown.
        announce: called before anything is shown with the data set as this run has it: one that is resumed keeps to the
            images that it began with.

    Returns:
        The summary, also written to the folder.

    Raises:
        UserError: the folder holds something else, cannot be written to, or another training is at work there; the
            network does not fit, the data are not the run's, or too many images are broken.
            Where no epoch was finished, the folder is left as it was.
        Interrupted, Diverged: on Ctrl-C or another signal to end, and on a loss that is not finite; what was finished
            is kept.
    """
    folder = RunFolder(output)
    folder.open(resume)
    with folder.at_work():
        return _train(plan, dataset, folder, resume, console, announce)


def _train(
    plan: Plan,
    dataset: Dataset,
    folder: RunFolder,
    resume: bool,
    console: Console,
    announce: Callable[[Dataset], object] | None,
) -> RunSummary:
    if dataset.channels > plan.channels:
        raise UserError(f"{dataset.name} is not what this run was trained on: its images are in colour")
    dataset = with_classes(dataset, plan.class_names)
    dataset, record, notes = _held(dataset, folder) if resume else _recorded(plan, dataset)
    if announce is not None:
        announce(dataset)
    for text in notes:
        say(console, text)
    set_seed(plan.seed)
    session = _prepare(plan, dataset, record, folder, console)
    try:
        first_epoch = _restore(session) if resume and folder.last.exists() else _begin(session)
        with _explaining(session):
            evaluation = _fit(session, first_epoch)
            return _finish(session, evaluation)
    finally:
        session.batches.close()
        session.judge.batches.close()


def _recorded(plan: Plan, dataset: Dataset) -> tuple[Dataset, SplitRecord, list[str]]:
    """Return a new run's data, its record, and what in it is known to the weights that the run begins with."""
    copies = copies_in(dataset)
    if plan.weights is None or are_published(plan.weights):
        return dataset, record_of(dataset), copies
    _, notes = divide_for(dataset, plan.weights, as_given=True)
    return dataset, record_of(dataset, read_record(plan.weights)), [*copies, *notes]


def _held(dataset: Dataset, folder: RunFolder) -> tuple[Dataset, SplitRecord, list[str]]:
    """Return the images that a run began with, its record, and what is other than then."""
    record = read_record(folder.path)
    if record is None:
        raise UserError(
            f"{folder.path} has no record of the images that it was trained on, so that it cannot go on with them: "
            f"begin a new run, with --weights {folder.path}"
        )
    dataset, notes = held_to(dataset, record)
    return dataset, record, notes


def _prepare(plan: Plan, dataset: Dataset, record: SplitRecord, folder: RunFolder, console: Console) -> _Session:
    recipe = plan.recipe
    network = build_network(plan)
    if not len(dataset.train):
        raise UserError(f"{dataset.name} has no images to train on")
    variation = Variation(recipe.augmentation, recipe.label_smoothing, shuffle=True, seed=plan.seed)
    batches = make_batches(dataset.train, network, recipe.batch_size, variation)
    if dataset.validation is not None:
        judge = Judge("validation", make_batches(dataset.validation, network, recipe.batch_size))
    else:
        judge = Judge("test", make_batches(dataset.test, network, recipe.batch_size))
    with console.status("reading images"):
        batches.load()
        judge.batches.load()
    is_jitted = keras.backend.backend() == "jax" if recipe.jit_compile == "auto" else recipe.jit_compile
    network.compile(
        optimizer=make_optimizer(
            recipe, (recipe.epochs - plan.schedule_start) * len(batches), network, plan.schedule_start * len(batches)
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=is_jitted,
    )
    return _Session(plan, dataset, record, folder, network, batches, judge, console, [], Interruption())


def _begin(session: _Session) -> int:
    """Write down what is to be done, and return the first epoch."""
    plan, folder = session.plan, session.folder
    if plan.weights is not None:
        taken = start_from(session.network, plan.weights)
        print_lines(session.console, {"weights": taken})
    try:
        _write_record(session)
        write_json(folder.recipe, plan.as_dict())
        write_json(folder.environment, environment(keras.backend.backend()))
    except BaseException:
        folder.discard()
        raise
    return 0


def _restore(session: _Session) -> int:
    """Load the last finished epoch's model and optimizer, and return the epoch to go on with."""
    folder, network, steps = session.folder, session.network, len(session.batches)
    with vetted(folder.last) as checked:
        network.load_weights(checked)
    if session.plan.recipe.average:
        swap_average(network)
    done = int(network.optimizer.iterations)
    if done % steps:
        raise UserError(f"{session.dataset.name} has other images than when {folder.path} was trained: begin a new run")
    # A crash between writing the two files leaves a row too many.
    session.rows.extend(row for row in folder.read_metrics() if row["epoch"] <= done // steps)
    if done // steps < session.plan.recipe.epochs:
        # It may go on beyond an end that it had reached.
        _write_record(session)
        write_json(folder.recipe, session.plan.as_dict())
        folder.summary.unlink(missing_ok=True)
    return done // steps


def _write_record(session: _Session) -> None:
    """Write down which images are trained on: not those that turned out to be broken."""
    is_first = not session.rows
    record = session.record.as_read(session.dataset.train, session.batches.broken_places, is_first)
    session.network.metadata[SPLIT] = record.as_dict()
    write_json(session.folder.split, session.network.metadata[SPLIT])


def _fit(session: _Session, first_epoch: int) -> Evaluation | None:
    """Train from an epoch on; return the judge's evaluation after the last one, None if there was no epoch left."""
    recipe, batches, folder = session.plan.recipe, session.batches, session.folder
    batches.epoch = first_epoch
    if first_epoch == recipe.epochs:
        return None
    steps = len(batches)
    bar = ProgressBar(session.console, recipe.epochs, steps, first_epoch * steps)
    interruption = session.interruption
    # Images that do not fit into memory are read in the first epoch, and not before.
    recorder = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: _write_record(session) if epoch == first_epoch else None
    )
    bookkeeper = Bookkeeper(folder, recipe, session.plan.seed, batches, session.judge, bar, interruption, session.rows)
    with interruption, bar:
        session.network.fit(
            batches,
            epochs=recipe.epochs,
            initial_epoch=first_epoch,
            shuffle=False,
            verbose=0,
            callbacks=[recorder, bookkeeper],
        )
    return bookkeeper.evaluation


@contextmanager
def _explaining(session: _Session) -> Iterator[None]:
    """Turn what stops a training into an exception that says what was kept."""
    try:
        yield
    except (StopTraining, KeyboardInterrupt) as reason:
        kept, command = _keep(session), shlex.join(_resume_command(session))
        if isinstance(reason, StopTraining) and str(reason):
            raise diverged(reason, kept, session.plan.recipe.learning_rate) from None
        resume = f"; go on with: {command}" if session.rows else ""
        raise Interrupted(f"stopped: {kept}{resume}", session.interruption.number) from None
    except Exception as error:
        # TensorFlow wraps what was raised while it asked for a batch.
        failure = error if isinstance(error, UserError) else session.batches.failure
        kept = _keep(session)
        if failure is None:
            raise
        raise UserError(f"{failure}; {kept}") from error


def _keep(session: _Session) -> str:
    """Draw the curves of what was finished, or remove an empty run; return a clause that says so."""
    folder, rows = session.folder, session.rows
    with on_signals(lambda _: None):  # it takes a moment, and says how to go on
        if not folder.last.exists():
            folder.discard()
            return "no epoch was finished, so nothing was kept"
        if not rows:
            return f"{folder.last} is as it was"
        with suppress(UserError, OSError):  # a full disk is no reason not to say what was kept
            report.curves(folder.metrics, folder.curves)
    return f"{folder.last} holds the model after epoch {rows[-1]['epoch']:.0f} of {session.plan.recipe.epochs}"


def _resume_command(session: _Session) -> list[str]:
    return ["groupwise", "train", session.plan.data, "--output", str(session.folder.path), "--resume"]


def _finish(session: _Session, evaluation: Evaluation | None) -> RunSummary:
    """Test the last model, draw the curves, and write the summary."""
    folder, rows, judge = session.folder, session.rows, session.judge
    broken = [*session.batches.broken, *judge.batches.broken]
    if evaluation is None or judge.name != "test":
        # fit() itself ends with the averaged weights in place; a run restored at its end does not.
        if evaluation is None and session.plan.recipe.average:
            swap_average(session.network)
        batches = make_batches(session.dataset.test, session.network, session.plan.recipe.batch_size)
        evaluation = evaluate(session.network, batches, session.plan.recipe.batch_size)
        broken += [pair for pair in batches.broken if pair not in broken]
        batches.close()
    best = max(rows, key=lambda row: row[f"{judge.name}_accuracy"])
    description = models.describe(session.network)
    summary = RunSummary(
        test_accuracy=evaluation.top1,
        test_top5=evaluation.top5,
        test_loss=evaluation.loss,
        test_images=evaluation.count,
        best_epoch=int(best["epoch"]),
        best_accuracy=best[f"{judge.name}_accuracy"],
        judged_by=judge.name,
        epochs=len(rows),
        training_seconds=round(sum(row["seconds"] for row in rows), 1),
        images_per_second=round(rows[-1]["images_per_second"], 1),
        share_waited=round(rows[-1]["share_waited"], 4),
        trainable_parameters=description.trainable_parameters,
        macs=description.macs,
        broken_images=broken,
    )
    report.curves(folder.metrics, folder.curves)
    write_json(folder.summary, asdict(summary))
    return summary
