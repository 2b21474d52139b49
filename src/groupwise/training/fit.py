"""train(): from a plan and a data set to the folder of a run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import keras

from groupwise import backends, models
from groupwise.data import Dataset, Variation
from groupwise.data.record import SplitRecord, copies_in, held_to, record_of
from groupwise.errors import UserError, argument, check_installed, first_line
from groupwise.frameworks import FRAMEWORKS
from groupwise.inference.evaluation import Evaluation, evaluate
from groupwise.inference.matching import with_classes
from groupwise.inference.preprocessing import make_batches
from groupwise.inference.recorded import divide_for, read_record
from groupwise.inference.run_folder import read_json
from groupwise.interruption import Interrupted, on_signals
from groupwise.keras_private import without_tensorflow
from groupwise.models.steps import run_recorded
from groupwise.training.bookkeeper import Bookkeeper, swap_average
from groupwise.training.checkpoints import Checkpoint, Interval, newest, paths, step_of
from groupwise.training.events import (
    Begun,
    EndedEarly,
    Finished,
    FitBegun,
    FitEnded,
    Noted,
    Observer,
    ReadingBegun,
    ReadingEnded,
    WeightsTaken,
)
from groupwise.training.keeping import Keeper
from groupwise.training.observers import log
from groupwise.training.optimizers import make_optimizer
from groupwise.training.plan import Plan, build_network
from groupwise.training.seed import set_seed
from groupwise.training.session import Judge, Run, Session
from groupwise.training.starting import are_published, start_from
from groupwise.training.state import build_metrics, restore_state
from groupwise.training.stopped import Diverged, StopTraining
from groupwise.training.summary import RunSummary
from groupwise.training.workspace import Workspace, environment, write_json
from groupwise.writing import expanded, make_folder

FEW_STEPS = 4
"""An epoch of fewer steps is one that a recipe was not made for."""


def read_plan(output: str | Path) -> Plan:
    """Return the plan of the run in a folder. Raises UserError where there is none."""
    folder = Workspace(expanded(output))
    folder.open(resume=True)
    return Plan.of(read_json(folder.recipe))


def train(
    plan: Plan,
    dataset: Dataset,
    output: str | Path,
    *,
    resume: bool = False,
    observer: Observer = log,
    checkpoint_every: str = "10min",
    checkpoints_kept: int = 2,
) -> RunSummary:
    """Train a network and leave all there is to know about it in a folder.

    Args:
        plan: `make_plan`'s, or `read_plan`'s to go on with a run, perhaps to another end (`extend_plan`).
        dataset: what the plan was made for.
        output: the run's folder: new or empty, or the run to go on with.
        resume: go on from the newest checkpoint of the run in `output`. On the same machine the result is, to the bit,
            that of a training without interruption, where the plan is the same.
        observer: called with each of `groupwise.training.events` as it happens. Default: the logger
            "groupwise.training"; `observers` has more. What it raises ends the training as any error does.
        checkpoint_every: how often a checkpoint is written within an epoch: a time such as "30s", "10min" or "2h", a
            number of steps such as "500steps", or "never". At an epoch's end, and where a signal ends the training, one
            always is.
        checkpoints_kept: how many of the newest ones stay, 1 or more.

    Returns:
        The summary, also written to the folder.

    Raises:
        UserError: the folder holds something else, cannot be written to, or another training is at work there; the
            network does not fit, the data are not the run's, or too many images are broken.
            Where no step was kept, the folder is left as it was.
        Interrupted, Diverged: on Ctrl-C or another signal to end, and on a loss that is not finite; what was finished
            is kept.

    Examples:
        >>> from groupwise.data import load_dataset
        >>> from groupwise.recipes import load_recipe
        >>> digits = load_dataset("digits")
        >>> plan = make_plan(digits, "digits", load_recipe("digits"))  # doctest: +SKIP
        >>> train(plan, digits, Path("run"), observer=TextObserver()).test_accuracy  # doctest: +SKIP
        0.99
    """
    if checkpoints_kept < 1:
        raise UserError(f"{argument('checkpoints_kept', checkpoints_kept)}: one is the least that a run can go on from")
    interval = Interval.of(checkpoint_every)
    folder = Workspace(expanded(output))
    folder.open(resume)
    with folder.at_work(), without_tensorflow():
        run, notes = _run(plan, dataset, folder, resume, observer)
        observer(Begun(plan, run.dataset, folder.path, keras.backend.backend(), _accelerator()))
        for text in (*notes, *_large_batches(run), *_why_no_curves()):
            observer(Noted(text))
        return _train(run, resume, Keeper(folder.checkpoints, interval, checkpoints_kept))


def _large_batches(run: Run) -> list[str]:
    """Return the sentence that an epoch is hardly a step, if so."""
    count, size = len(run.dataset.train), run.plan.recipe.batch_size
    if count >= FEW_STEPS * size:
        return []
    better = argument("batch_size", 2 ** max(0, (count // 10).bit_length() - 1))
    return [
        f"An epoch of {count} images is hardly more than a batch of {size}, for which the recipe's learning rate is "
        f"meant: {better}, and a smaller {argument('learning_rate')}, will suit them better."
    ]


def _run(plan: Plan, dataset: Dataset, folder: Workspace, resume: bool, observer: Observer) -> tuple[Run, list[str]]:
    """Return what is to be done, on the images that a run keeps to, and sentences on what may mislead."""
    if dataset.channels > plan.channels:
        raise UserError(f"{dataset.name} is not what this run was trained on: its images are in colour")
    dataset = with_classes(dataset, plan.class_names)
    dataset, record, notes = _held(dataset, folder) if resume else _recorded(plan, dataset)
    return Run(plan, dataset, record, folder, observer), notes


def _train(run: Run, resume: bool, keeper: Keeper) -> RunSummary:
    set_seed(run.plan.seed)
    session = _prepare(run, keeper)
    try:
        resumed = _restore(session) if resume else None
        if resumed is None:
            _begin(session)
        with _explaining(session):
            evaluation = _fit(session, resumed)
            summary = _finish(session, evaluation)
    finally:
        session.close()
    run.observer(Finished(summary, run.folder.path))
    return summary


def _recorded(plan: Plan, dataset: Dataset) -> tuple[Dataset, SplitRecord, list[str]]:
    """Return a new run's data, its record, and what in it is known to the weights that the run begins with."""
    copies = copies_in(dataset)
    if plan.weights is None or are_published(plan.weights):
        return dataset, record_of(dataset), copies
    _, notes = divide_for(dataset, plan.weights, as_given=True)
    return dataset, record_of(dataset, read_record(plan.weights)), [*copies, *notes]


def _held(dataset: Dataset, folder: Workspace) -> tuple[Dataset, SplitRecord, list[str]]:
    """Return the images that a run began with, its record, and what is other than then."""
    record = read_record(folder.path)
    if record is None:
        raise UserError(
            f"{folder.path} has no record of the images that it was trained on, so that it cannot go on with them: "
            f"begin a new run, with {argument('weights', folder.path)}"
        )
    dataset, notes = held_to(dataset, record)
    return dataset, record, notes


def _prepare(run: Run, keeper: Keeper) -> Session:
    """Return the network, compiled, and its images, read as far as memory holds them."""
    plan, dataset, recipe = run.plan, run.dataset, run.plan.recipe
    network = build_network(plan)
    if not len(dataset.train):
        raise UserError(f"{dataset.name} has no images to train on")
    variation = Variation(recipe.augmentation, recipe.label_smoothing, shuffle=True, seed=plan.seed)
    batches = make_batches(dataset.train, network, recipe.batch_size, variation)
    if dataset.validation is not None:
        judge = Judge("validation", make_batches(dataset.validation, network, recipe.batch_size))
    else:
        judge = Judge("test", make_batches(dataset.test, network, recipe.batch_size))
    run.observer(ReadingBegun())
    try:
        batches.load()
        judge.batches.load()
    finally:
        run.observer(ReadingEnded())
    framework = FRAMEWORKS[keras.backend.backend()]
    is_jitted = framework.compiles_training if recipe.jit_compile == "auto" else recipe.jit_compile
    if is_jitted and not backends.xla_compiles():
        is_jitted = False
        run.observer(Noted("The steps are not compiled: XLA on TensorFlow cannot pass through the core."))
    elif is_jitted and recipe.jit_compile != "auto":
        run.observer(Noted("The steps are compiled: the first ones may take a minute or more."))
    network.compile(
        optimizer=make_optimizer(
            recipe, (recipe.epochs - plan.schedule_start) * batches.steps, network, plan.schedule_start * batches.steps
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=is_jitted,
    )
    build_metrics(network)
    # As it is: a run that is resumed would fold later than one that was not, and its losses round otherwise.
    run_recorded(network, folds=False)
    return Session(run, network, batches, judge, keeper)


def _begin(session: Session) -> None:
    """Write down what is to be done."""
    plan, folder = session.run.plan, session.run.folder
    if plan.weights is not None:
        session.run.observer(WeightsTaken(start_from(session.network, plan.weights)))
    try:
        session.write_record()
        write_json(folder.recipe, plan.as_dict())
        write_json(folder.environment, environment(keras.backend.backend(), _accelerator()))
        make_folder(folder.checkpoints)
    except BaseException:
        folder.discard()
        raise


def _accelerator() -> str | None:
    """Return the name of the card that the framework trains on; None for a CPU."""
    card = backends.active.runtime().accelerator
    return None if card is None else card.name


def _restore(session: Session) -> Checkpoint | None:
    """Give the network what the newest checkpoint holds, and return that; None where the run is to begin anew."""
    run, batches = session.run, session.batches
    folder = run.folder
    checkpoint, damaged = newest(folder.checkpoints)
    if checkpoint is None and (damaged or (folder.last.exists() and not folder.checkpoints.exists())):
        why = damaged[0] if damaged else f"{folder.path} holds no checkpoints"
        raise UserError(f"{why}: begin a new run from what it has learnt, with {argument('weights', folder.path)}")
    if checkpoint is None:
        return None
    for text in damaged:
        run.observer(Noted(f"{text}; the run goes on from the checkpoint before, {checkpoint.step} steps"))
    if checkpoint.steps != batches.steps:
        raise UserError(f"{run.dataset.name} has other images than when {folder.path} was trained: begin a new run")
    restore_state(session.network, checkpoint.arrays)
    batches.epoch, batches.first = checkpoint.epoch, checkpoint.first
    session.rows.extend(dict(row) for row in checkpoint.rows)
    if session.rows:
        folder.write_metrics(session.rows)
    if checkpoint.epoch < run.plan.recipe.epochs:
        # It may go on beyond an end that it had reached.
        session.write_record()
        write_json(folder.recipe, run.plan.as_dict())
        folder.summary.unlink(missing_ok=True)
    return checkpoint


def _fit(session: Session, resumed: Checkpoint | None) -> Evaluation | None:
    """Train from a checkpoint on; return the judge's evaluation after the last epoch, None if there was none left."""
    recipe, batches, observer = session.run.plan.recipe, session.batches, session.run.observer
    first_epoch = batches.epoch
    if first_epoch == recipe.epochs:
        return None
    # fit() settles at its beginning how many steps an epoch has: one that was interrupted is a fit() of its own.
    begins = [first_epoch, first_epoch + 1] if batches.first else [first_epoch]
    # Images that do not fit into memory are read in the first epoch, and not before.
    recorder = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: session.write_record() if epoch == first_epoch else None
    )
    bookkeeper = Bookkeeper(session, resumed)
    with session.interruption:
        observer(FitBegun(recipe.epochs, batches.steps, first_epoch))
        try:
            for begin, end in pairwise([*begins, recipe.epochs]):
                session.network.fit(
                    batches,
                    epochs=end,
                    initial_epoch=begin,
                    shuffle=False,
                    verbose=0,
                    callbacks=[recorder, bookkeeper],
                )
        finally:
            observer(FitEnded())
    return bookkeeper.evaluation


@contextmanager
def _explaining(session: Session) -> Iterator[None]:
    """Turn what stops a training into an exception that says what was kept."""
    try:
        yield
    except (StopTraining, KeyboardInterrupt) as reason:
        kept = _keep(session)
        session.run.observer(EndedEarly(str(reason), kept))
        if isinstance(reason, StopTraining) and str(reason):
            raise Diverged(reason, kept, session.run.plan.recipe.learning_rate) from None
        resumable = bool(paths(session.run.folder.checkpoints))
        raise Interrupted(f"stopped: {kept}", session.interruption.number, resumable) from None
    except Exception as error:
        # TensorFlow wraps what was raised while it asked for a batch.
        failure = error if isinstance(error, UserError) else session.batches.failure
        kept = _keep(session)
        session.run.observer(EndedEarly(first_line(failure or error), kept))
        if failure is None:
            raise
        raise UserError(f"{failure}; {kept}") from error


def _keep(session: Session) -> str:
    """Draw the curves of what was finished, or remove an empty run; return a clause that says so."""
    folder = session.run.folder
    with on_signals(lambda _: None):  # it takes a moment, and says how to go on
        session.wait_for_checkpoint()
        files = paths(folder.checkpoints)
        if not files and not folder.last.exists():
            folder.discard()
            return "nothing was kept"
        if not files:
            return f"{folder.last} holds the last finished epoch's model"
        # Neither a full disk nor what a signal left of matplotlib, half imported, is a reason not to say what was kept.
        with suppress(Exception):
            _draw_curves(folder)
    return f"{files[0]} holds the training after {_steps_of(files[0], session)}"


def _steps_of(path: Path, session: Session) -> str:
    """Return how far a checkpoint is: "epoch 2 of 4", or "step 30 of epoch 3 of 4"."""
    epoch, step = divmod(step_of(path), session.batches.steps)
    total = session.run.plan.recipe.epochs
    return f"step {step} of epoch {epoch + 1} of {total}" if step else f"epoch {epoch} of {total}"


def _finish(session: Session, evaluation: Evaluation | None) -> RunSummary:
    """Test the last model, draw the curves, and write the summary."""
    run, rows, judge = session.run, session.rows, session.judge
    session.wait_for_checkpoint()
    broken = [*session.batches.broken, *judge.batches.broken]
    if evaluation is None or judge.name != "test":
        if run.plan.recipe.average:
            swap_average(session.network)
        batches = make_batches(run.dataset.test, session.network, run.plan.recipe.batch_size)
        evaluation = evaluate(session.network, batches)
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
    _draw_curves(run.folder)
    write_json(run.folder.summary, asdict(summary))
    return summary


def _draw_curves(folder: Workspace) -> None:
    """Draw the curves of what was finished, where it can be done: no training is the worse for want of a picture."""
    if not _why_no_curves():
        from groupwise import report

        report.curves(folder.metrics, folder.curves)


def _why_no_curves() -> list[str]:
    """Return the sentence on why none can be drawn, if so."""
    try:
        check_installed("matplotlib", "curves.png is left out: it")
    except UserError as error:
        return [str(error)]
    return []
