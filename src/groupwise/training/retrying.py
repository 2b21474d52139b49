"""A training that diverged goes back to where it was last tested, with a smaller learning rate.

That is the end of an epoch, and not the newest checkpoint: which one this is depends on time and on interruptions, and
its weights may be about to burst. So a run that was interrupted goes back to where an undisturbed one does.
"""

from dataclasses import replace

from groupwise.training.checkpoints import paths, step_of
from groupwise.training.events import Retried
from groupwise.training.plan import MOST_RETRIES, Plan
from groupwise.training.session import Session
from groupwise.training.stopped import StopTraining


class WentBack(Exception):  # noqa: N818 - a way out of fit(), and into it again
    """The run's folder is as it was when an epoch ended, and the training is to go on from there.

    Args:
        plan: of what is to follow.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan


def can_go_back(session: Session) -> bool:
    """Return whether the recipe asks for it, it did not happen too often, and there is a place to go back to."""
    plan, finished = session.run.plan, len(session.rows)
    if plan.recipe.on_nan != "retry" or plan.retries >= MOST_RETRIES:
        return False
    session.wait_for_checkpoint()
    ends = {step_of(path) for path in paths(session.run.folder.checkpoints)}
    can = not finished or finished * session.batches.steps in ends
    return bool(session.run.distribution.first(can))


def go_back(session: Session, reason: StopTraining) -> WentBack:
    """Remove what was written since the last epoch ended, write down that the rate is smaller, and say so."""
    run, finished = session.run, len(session.rows)
    for path in paths(run.folder.checkpoints):
        if not run.folder.process and step_of(path) > finished * session.batches.steps:
            path.unlink(missing_ok=True)
    # Last: a run that is killed before goes on from the same place, and diverges again.
    plan = replace(run.plan, retries=run.plan.retries + 1)
    run.folder.write_json(run.folder.recipe, plan.as_dict())
    run.distribution.gather(None)  # before another process reads it
    run.observer(Retried(str(reason), finished, plan.learning_rate, plan.retries))
    return WentBack(plan)
