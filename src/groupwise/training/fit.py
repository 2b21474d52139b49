"""train(): from a plan and a data set to the folder of a run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np

from groupwise.data import Dataset
from groupwise.errors import UserError, argument
from groupwise.inference.evaluation import Evaluation
from groupwise.inference.matching import with_classes
from groupwise.keras_private import without_tensorflow
from groupwise.texts import json_text
from groupwise.training.beginning import accelerator, begin, large_batches, prepare, recorded
from groupwise.training.bookkeeper import Bookkeeper
from groupwise.training.checkpoints import Checkpoint, Interval
from groupwise.training.distribution import Distribution
from groupwise.training.ending import explaining, finish
from groupwise.training.events import Begun, Event, Finished, FitBegun, FitEnded, Noted, Observer
from groupwise.training.keeping import Keeper
from groupwise.training.notebook import NotebookObserver, is_notebook
from groupwise.training.observers import TextObserver, log
from groupwise.training.plan import Plan
from groupwise.training.reporting import why_no_pictures
from groupwise.training.resuming import held, restore
from groupwise.training.retrying import WentBack
from groupwise.training.seed import set_seed
from groupwise.training.session import Run, Session
from groupwise.training.summary import RunSummary
from groupwise.training.testing import load_tests, settle_tests
from groupwise.training.workspace import Workspace
from groupwise.writing import expanded


def train(
    plan: Plan,
    dataset: Dataset,
    output: str | Path,
    *,
    resume: bool = False,
    observer: Observer | Sequence[Observer] | None = None,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    checkpoint_every: str = "10min",
    checkpoints_kept: int = 2,
    distribution: Distribution | None = None,
    tests: Mapping[str, Dataset] | None = None,
) -> RunSummary:
    """Train a network and leave all there is to know about it in a folder.

    Args:
        plan: `make_plan`'s, or `read_plan`'s to go on with a run, perhaps to another end (`extend_plan`).
        dataset: what the plan was made for.
        output: the run's folder: new or empty, or the run to go on with.
        resume: go on from the newest checkpoint of the run in `output`. On the same machine the result is, to the bit,
            that of a training without interruption, where the plan is the same.
        observer: called with each of `groupwise.training.events` as it happens; or several. Default: in a notebook
            `NotebookObserver`, elsewhere the logger "groupwise.training". What it raises ends the training as any
            error does.
        callbacks: Keras's, one or several, which see the judge's numbers as "val_loss" and "val_accuracy". They may
            stop the training; what they remember is not kept by checkpoints. Where images grow, training begins and
            ends for them with each size.
        checkpoint_every: how often a checkpoint is written within an epoch: a time such as "30s", "10min" or "2h", a
            number of steps such as "500steps", or "never". At an epoch's end, and where a signal ends the training, one
            always is.
        checkpoints_kept: how many of the newest ones stay, 1 or more.
        distribution: the processes that train together, entered. Each calls this with the same arguments; the first
            one writes the folder, which all of them see, and tells `observer`; the others log to a file there. Default:
            this process alone, on JAX with all of its devices.
        tests: further data, by names of yours, that the best model is tested on once, at the end: all of their images
            but those that are trained on. Their classes are matched by name, and may be fewer. Default: what the plan
            names.

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
    distribution = distribution or Distribution.alone()
    tests = load_tests(plan.tests) if tests is None else tests
    observe = _as_one(observer)
    if isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks]
    folder = Workspace(expanded(output), distribution.index)
    folder.open(resume)
    with (
        folder.at_work(),
        without_tensorflow(),
        distribution.scope(),
        _observed(folder, observe, distribution) as observe,
    ):
        run, notes = _run(plan, dataset, folder, resume, observe, distribution)
        settled, said = settle_tests(tests, plan.class_names, run.dataset.train, run.record)
        run = replace(run, tests=settled, callbacks=tuple(callbacks))
        _check_the_same(run)
        observe(Begun(plan, run.dataset, folder.path, keras.backend.backend(), accelerator()))
        for text in (*_who(distribution), *notes, *said, *large_batches(run), *why_no_pictures()):
            observe(Noted(text))
        while True:
            keeper = Keeper(folder.checkpoints, interval, checkpoints_kept, plan.recipe.on_nan == "retry")
            try:
                return _train(run, resume, keeper)
            except WentBack as back:
                plan, resume = back.plan, True
            again, _ = _run(plan, dataset, folder, resume, observe, distribution)
            run = replace(again, tests=run.tests, callbacks=run.callbacks)


def _as_one(observer: Observer | Sequence[Observer] | None) -> Observer:
    """Return who is told of events, as one."""
    if observer is None:
        return NotebookObserver() if is_notebook() else log
    observers = tuple(observer) if isinstance(observer, Sequence) else (observer,)
    others = [each for each in observers if not callable(each)]
    if others:
        says = "is no function of an event; Keras's callbacks are given by callbacks=[...]"
        raise UserError(f"{argument('observer', type(others[0]).__name__)}: {says}")

    def observe(event: Event) -> None:
        for each in observers:
            each(event)

    return observe


@contextmanager
def _observed(folder: Workspace, observer: Observer, distribution: Distribution) -> Iterator[Observer]:
    """Give who is told of a process's events, now that process 0 has made the folder."""
    distribution.gather(None)
    seen = distribution.gather(folder.path.is_dir())
    if not all(seen):
        says = "the folder of a run lies where all processes see it"
        raise UserError(f"{argument('output', folder.path)}: process {seen.index(False)} sees no such folder; {says}")
    if folder.process:
        with folder.log.open("a", encoding="utf-8") as file:
            yield TextObserver(file)
    else:
        yield observer


def _check_the_same(run: Run) -> None:
    """Raise UserError where processes do not agree on what is to be trained, and on which images."""
    if run.distribution.count == 1:
        return
    tests = {name: [split.identities().tolist() for split in splits] for name, splits in run.tests.items()}
    same = {"arguments": run.plan.as_dict(), "images": run.record.as_dict(), "images to test on": tests}
    for what, content in same.items():
        every = run.distribution.gather(blake2b(json_text(content).encode(), digest_size=16).hexdigest())
        if len({*every}) > 1:
            other = next(index for index, each in enumerate(every) if each != every[0])
            raise UserError(f"process {other} has other {what} than process 0: all train by the same, on the same")


def _who(distribution: Distribution) -> list[str]:
    """Return the sentence on which processes and devices train, where there are several."""
    return [f"Training as {distribution}"] if distribution.device_count > 1 else []


def _run(
    plan: Plan, dataset: Dataset, folder: Workspace, resume: bool, observer: Observer, distribution: Distribution
) -> tuple[Run, list[str]]:
    """Return what is to be done, on the images that a run keeps to, and sentences on what may mislead."""
    if dataset.channels > plan.channels:
        raise UserError(f"{dataset.name} is not what this run was trained on: its images are in colour")
    dataset = with_classes(dataset, plan.class_names)
    dataset, record, notes = held(dataset, folder) if resume else recorded(plan, dataset)
    return Run(plan, dataset, record, folder, observer, distribution), notes


def _train(run: Run, resume: bool, keeper: Keeper) -> RunSummary:
    run.distribution.hint("")
    set_seed(run.plan.seed)
    session = prepare(run, keeper)
    try:
        resumed = restore(session) if resume else None
        if resumed is None:
            begin(session)
        run.distribution.hint(f"{argument('resume', True)} goes on from the newest checkpoint")
        with explaining(session):
            evaluation = _fit(session, resumed)
            summary = finish(session, evaluation)
    finally:
        session.close()
    run.observer(Finished(summary, run.folder.path))
    return summary


def _fit(session: Session, resumed: Checkpoint | None) -> Evaluation | None:
    """Train from a checkpoint on; return the judge's evaluation after the last epoch, None if there was none left."""
    recipe, batches, observer = session.run.plan.recipe, session.batches, session.run.observer
    first_epoch = batches.epoch
    if session.is_over and not batches.first:
        return None
    # fit() settles at its beginning how many steps an epoch has, and on TensorFlow what size its images are of: an
    # epoch that was interrupted is a fit() of its own, and so are the epochs of a size.
    sizes = session.run.plan.image_sizes
    rest = {first_epoch + 1} if batches.first else set()
    begins = [first_epoch, *sorted(rest.union(epoch for epoch in sizes if epoch > first_epoch))]
    # Images that do not fit into memory are read in the first epoch, and not before.
    recorder = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: session.write_record() if epoch == first_epoch else None
    )
    bookkeeper = Bookkeeper(session, resumed)
    with session.interruption:
        observer(FitBegun(recipe.epochs, batches.steps, first_epoch, batches.first))
        try:
            for begin, end in pairwise([*begins, recipe.epochs]):
                if begin != first_epoch:
                    if session.network.stop_training:
                        break
                    batches.epoch, batches.first = begin, 0
                    if begin in sizes:
                        # TensorFlow would trace a second size as any, and perhaps round otherwise than a resumed run.
                        session.network.make_train_function(force=True)
                session.network.fit(
                    batches,
                    epochs=end,
                    initial_epoch=begin,
                    shuffle=False,
                    verbose=0,
                    class_weight=_class_weights(session.run),
                    callbacks=[recorder, bookkeeper, *session.run.callbacks],
                )
        finally:
            observer(FitEnded())
    return bookkeeper.evaluation


def _class_weights(run: Run) -> dict[int, float] | None:
    """Return by how much each class counts in the loss, as the recipe says; None: each image as much as any other."""
    if run.plan.recipe.class_weights == "none":
        return None
    counts = np.bincount(run.dataset.train.labels, minlength=len(run.plan.class_names))
    return {label: len(run.dataset.train) / np.count_nonzero(counts) / max(int(n), 1) for label, n in enumerate(counts)}
