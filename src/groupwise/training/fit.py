"""train(): from a plan and a data set to the folder of a run."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
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
from groupwise.models.reading import vetted
from groupwise.training.bookkeeper import Bookkeeper, swap_average
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
from groupwise.training.observers import log
from groupwise.training.optimizers import make_optimizer
from groupwise.training.plan import Plan, build_network
from groupwise.training.seed import set_seed
from groupwise.training.session import Judge, Run, Session
from groupwise.training.starting import are_published, start_from
from groupwise.training.stopped import Diverged, StopTraining
from groupwise.training.summary import RunSummary
from groupwise.training.workspace import Workspace, environment, write_json
from groupwise.writing import expanded

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
) -> RunSummary:
    """Train a network and leave all there is to know about it in a folder.

    Args:
        plan: `make_plan`'s, or `read_plan`'s to go on with a run, perhaps to another end (`extend_plan`).
        dataset: what the plan was made for.
        output: the run's folder: new or empty, or the run to go on with.
        resume: go on after the last finished epoch of the run in `output`. The result is that of a training
            without interruption, where the plan is the same.
        observer: called with each of `groupwise.training.events` as it happens. Default: the logger
            "groupwise.training"; `observers` has more. What it raises ends the training as any error does.

    Returns:
        The summary, also written to the folder.

    Raises:
        UserError: the folder holds something else, cannot be written to, or another training is at work there; the
            network does not fit, the data are not the run's, or too many images are broken.
            Where no epoch was finished, the folder is left as it was.
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
    folder = Workspace(expanded(output))
    folder.open(resume)
    with folder.at_work(), without_tensorflow():
        run, notes = _run(plan, dataset, folder, resume, observer)
        observer(Begun(plan, run.dataset, folder.path, keras.backend.backend(), _accelerator()))
        for text in (*notes, *_large_batches(run), *_why_no_curves()):
            observer(Noted(text))
        return _train(run, resume)


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


def _train(run: Run, resume: bool) -> RunSummary:
    set_seed(run.plan.seed)
    session = _prepare(run)
    try:
        first_epoch = _restore(session) if resume and run.folder.last.exists() else _begin(session)
        with _explaining(session):
            evaluation = _fit(session, first_epoch)
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


def _prepare(run: Run) -> Session:
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
            recipe, (recipe.epochs - plan.schedule_start) * len(batches), network, plan.schedule_start * len(batches)
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=is_jitted,
    )
    return Session(run, network, batches, judge)


def _begin(session: Session) -> int:
    """Write down what is to be done, and return the first epoch."""
    plan, folder = session.run.plan, session.run.folder
    if plan.weights is not None:
        session.run.observer(WeightsTaken(start_from(session.network, plan.weights)))
    try:
        session.write_record()
        write_json(folder.recipe, plan.as_dict())
        write_json(folder.environment, environment(keras.backend.backend(), _accelerator()))
    except BaseException:
        folder.discard()
        raise
    return 0


def _accelerator() -> str | None:
    """Return the name of the card that the framework trains on; None for a CPU."""
    card = backends.active.runtime().accelerator
    return None if card is None else card.name


def _restore(session: Session) -> int:
    """Load the last finished epoch's model and optimizer, and return the epoch to go on with."""
    run, network, steps = session.run, session.network, len(session.batches)
    folder = run.folder
    with vetted(folder.last) as checked:
        network.load_weights(checked)
    if run.plan.recipe.average:
        swap_average(network)
    done = int(network.optimizer.iterations)
    if done % steps:
        raise UserError(f"{run.dataset.name} has other images than when {folder.path} was trained: begin a new run")
    # A crash between writing the two files leaves a row too many.
    session.rows.extend(row for row in folder.read_metrics() if row["epoch"] <= done // steps)
    if done // steps < run.plan.recipe.epochs:
        # It may go on beyond an end that it had reached.
        session.write_record()
        write_json(folder.recipe, run.plan.as_dict())
        folder.summary.unlink(missing_ok=True)
    return done // steps


def _fit(session: Session, first_epoch: int) -> Evaluation | None:
    """Train from an epoch on; return the judge's evaluation after the last one, None if there was no epoch left."""
    recipe, batches, observer = session.run.plan.recipe, session.batches, session.run.observer
    batches.epoch = first_epoch
    if first_epoch == recipe.epochs:
        return None
    # Images that do not fit into memory are read in the first epoch, and not before.
    recorder = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: session.write_record() if epoch == first_epoch else None
    )
    bookkeeper = Bookkeeper(session)
    with session.interruption:
        observer(FitBegun(recipe.epochs, len(batches), first_epoch))
        try:
            session.network.fit(
                batches,
                epochs=recipe.epochs,
                initial_epoch=first_epoch,
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
        resumable = bool(session.rows)
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
    folder, rows = session.run.folder, session.rows
    with on_signals(lambda _: None):  # it takes a moment, and says how to go on
        if not folder.last.exists():
            folder.discard()
            return "no epoch was finished, so nothing was kept"
        if not rows:
            return f"{folder.last} is as it was"
        # Neither a full disk nor what a signal left of matplotlib, half imported, is a reason not to say what was kept.
        with suppress(Exception):
            _draw_curves(folder)
    return f"{folder.last} holds the model after epoch {rows[-1]['epoch']:.0f} of {session.run.plan.recipe.epochs}"


def _finish(session: Session, evaluation: Evaluation | None) -> RunSummary:
    """Test the last model, draw the curves, and write the summary."""
    run, rows, judge = session.run, session.rows, session.judge
    broken = [*session.batches.broken, *judge.batches.broken]
    if evaluation is None or judge.name != "test":
        # fit() itself ends with the averaged weights in place; a run restored at its end does not.
        if evaluation is None and run.plan.recipe.average:
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
