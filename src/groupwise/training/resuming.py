"""What goes on with a run: its plan, its images, and its newest checkpoint."""

from pathlib import Path

from groupwise.data import Dataset
from groupwise.data.record import SplitRecord, held_to
from groupwise.errors import UserError, argument
from groupwise.inference.recorded import read_record
from groupwise.inference.run_folder import read_json
from groupwise.training.checkpoints import Checkpoint, newest
from groupwise.training.events import Noted
from groupwise.training.plan import Plan
from groupwise.training.session import Session
from groupwise.training.state import restore_state
from groupwise.training.workspace import Workspace
from groupwise.writing import expanded


def read_plan(output: str | Path) -> Plan:
    """Return the plan of the run in a folder. Raises UserError where there is none."""
    folder = Workspace(expanded(output))
    folder.open(resume=True)
    return Plan.of(read_json(folder.recipe))


def held(dataset: Dataset, folder: Workspace) -> tuple[Dataset, SplitRecord, list[str]]:
    """Return the images that a run began with, its record, and what is other than then."""
    record = read_record(folder.path)
    if record is None:
        raise UserError(
            f"{folder.path} has no record of the images that it was trained on, so that it cannot go on with them: "
            f"begin a new run, with {argument('weights', folder.path)}"
        )
    dataset, notes = held_to(dataset, record)
    return dataset, record, notes


def restore(session: Session) -> Checkpoint | None:
    """Give the network what the newest checkpoint holds, and return that; None where the run is to begin anew."""
    run, batches = session.run, session.batches
    folder = run.folder
    checkpoint, damaged = newest(folder.checkpoints)
    if checkpoint is None and (damaged or (folder.last.exists() and not folder.checkpoints.exists())):
        why = damaged[0] if damaged else f"{folder.path} holds no checkpoints"
        raise UserError(f"{why}: begin a new run from what it has learnt, with {argument('weights', folder.path)}")
    steps = run.distribution.gather(None if checkpoint is None else checkpoint.step)
    if len({*steps}) > 1:
        seen = ", ".join(f"process {index} step {step}" for index, step in enumerate(steps))
        raise UserError(f"{folder.checkpoints}: the processes see other newest checkpoints: {seen}; try again")
    if checkpoint is None:
        return None
    for text in damaged:
        run.observer(Noted(f"{text}; the run goes on from the checkpoint before, {checkpoint.step} steps"))
    if checkpoint.steps != batches.steps:
        raise UserError(f"{run.dataset.name} has other images than when {folder.path} was trained: begin a new run")
    restore_state(session.network, checkpoint.arrays, run.distribution.index)
    batches.epoch, batches.first = checkpoint.epoch, checkpoint.first
    session.rows.extend(dict(row) for row in checkpoint.rows)
    if session.rows:
        folder.write_metrics(session.rows)
    if not session.is_over:
        # It may go on beyond an end that it had reached.
        session.write_record()
        if not folder.process:
            folder.summary.unlink(missing_ok=True)
    folder.write_json(folder.recipe, run.plan.as_dict())
    return checkpoint
