"""How a run ends: after its last epoch, or before it; what is kept, and what is said."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from groupwise import models
from groupwise.errors import UserError, first_line
from groupwise.inference.evaluation import Evaluation
from groupwise.interruption import Interrupted, on_signals
from groupwise.machine import peak_memory
from groupwise.training.bookkeeper import swap_average
from groupwise.training.checkpoints import paths, step_of
from groupwise.training.events import EndedEarly, Noted
from groupwise.training.reporting import look_at_tests, why_no_pictures, write_page
from groupwise.training.retrying import can_go_back, go_back
from groupwise.training.session import Session
from groupwise.training.stopped import Diverged, StopTraining
from groupwise.training.summary import RunSummary
from groupwise.training.testing import evaluate_further, evaluate_splits
from groupwise.training.workspace import Workspace


def finish(session: Session, evaluation: Evaluation | None) -> RunSummary:
    """Test the last model, and the best one on further data; draw the curves, and write summary and page."""
    run, rows, judge = session.run, session.rows, session.judge
    session.wait_for_checkpoint()
    broken = [*session.batches.broken, *judge.batches.broken]
    if run.plan.recipe.average:
        swap_average(session.network)
    if evaluation is None or judge.name != "test":
        evaluation, skipped = evaluate_splits(session, [run.dataset.test])
        broken += skipped
    seen = look_at_tests(session, evaluation)
    tests, skipped = evaluate_further(session)
    broken += skipped
    broken = list(dict.fromkeys(pair for pairs in run.distribution.gather(broken) for pair in pairs))
    best = rows[session.kept_epoch - 1]
    description = models.describe(session.network)
    summary = RunSummary(
        test_accuracy=evaluation.top1,
        test_top5=evaluation.top5,
        test_loss=evaluation.loss,
        test_images=evaluation.count,
        best_epoch=session.kept_epoch,
        best_accuracy=best[judge.accuracy],
        judged_by=judge.name,
        epochs=len(rows),
        training_seconds=round(sum(row["seconds"] for row in rows), 1),
        images_per_second=round(rows[-1]["images_per_second"], 1),
        share_waited=round(rows[-1]["share_waited"], 4),
        trainable_parameters=description.trainable_parameters,
        macs=description.macs,
        broken_images=broken,
        ended_by_patience=session.is_out_of_patience and len(rows) < run.plan.recipe.epochs,
        peak_memory=_largest(run.distribution.gather(peak_memory())),
        tests=tests,
    )
    try:
        _draw_curves(run.folder)
    except (UserError, OSError) as error:
        run.observer(Noted(f"{run.folder.curves.name} is left out: {first_line(error)}"))
    run.folder.write_json(run.folder.summary, asdict(summary))
    write_page(session, seen)
    return summary


def _largest(numbers: Sequence[int | None]) -> int | None:
    return max((number for number in numbers if number is not None), default=None)


@contextmanager
def explaining(session: Session) -> Iterator[None]:
    """Turn what stops a training into an exception that says what was kept."""
    try:
        yield
    except (StopTraining, KeyboardInterrupt) as reason:
        diverged = reason if isinstance(reason, StopTraining) and str(reason) else None
        if diverged is not None and can_go_back(session):
            raise go_back(session, diverged) from None
        if isinstance(reason, KeyboardInterrupt):  # which the processes have not agreed upon
            session.run.distribution.end_alone()
        kept = _keep(session)
        session.run.observer(EndedEarly(str(reason), kept))
        if diverged is not None:
            raise Diverged(diverged, kept, session.run.plan.learning_rate) from None
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
    """Draw curves and page of what was finished, or remove an empty run; return a clause that says what is kept."""
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
        with suppress(Exception):
            write_page(session, None)
    return f"{files[0]} holds the training after {_steps_of(files[0], session)}"


def _steps_of(path: Path, session: Session) -> str:
    """Return how far a checkpoint is: "epoch 2 of 4", or "step 30 of epoch 3 of 4"."""
    epoch, step = divmod(step_of(path), session.batches.steps)
    total = session.run.plan.recipe.epochs
    return f"step {step} of epoch {epoch + 1} of {total}" if step else f"epoch {epoch} of {total}"


def _draw_curves(folder: Workspace) -> None:
    """Draw the curves of what was finished, where it can be done: no training is the worse for want of a picture."""
    if not folder.process and not why_no_pictures():
        from groupwise import report

        report.curves(folder.metrics, folder.curves)
