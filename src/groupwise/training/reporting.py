"""The page on a run that is written at its end: what is looked at for it, and that no training is the worse for it."""

from dataclasses import replace
from typing import TYPE_CHECKING

from groupwise.errors import UserError, check_installed, first_line
from groupwise.inference import load_network
from groupwise.inference.evaluation import Evaluation, joined
from groupwise.training.events import Noted
from groupwise.training.session import Session

if TYPE_CHECKING:
    from groupwise.report.looking import Look


def look_at_tests(session: Session, evaluation: Evaluation) -> "Look | None":
    """Return what the last model makes of the images to test on; None in other processes than the first.

    A call of all processes. The network is the last one still.

    Args:
        session: at its end.
        evaluation: of these images, each process's own outputs with it.
    """
    run = session.run
    every = [part for part in run.distribution.gather(evaluation.outputs) if part is not None]
    if run.folder.process or why_no_pictures():
        return None
    try:
        from groupwise import report

        whole = replace(evaluation, outputs=joined(every) if every else None)
        with run.distribution.apart():
            # Of several devices' network this process holds a part, perhaps.
            is_alone = run.distribution.device_count == 1
            network = session.network if is_alone else load_network(run.folder.last)
            return report.look(network, run.dataset.test, whole)
    except Exception as error:
        run.observer(Noted(f"{run.folder.report.name} lacks what the images tell: {first_line(error)}"))
        return None


def write_page(session: Session, seen: "Look | None") -> None:
    """Write the page on the run, in the first process: with what was seen, or of its epochs alone."""
    folder = session.run.folder
    if folder.process or why_no_pictures():
        return
    try:
        from groupwise import report

        report.write_page(folder.report, folder.path.resolve().name, folder.path, seen)
    except Exception as error:
        session.run.observer(Noted(f"{folder.report.name} is left out: {first_line(error)}"))


def why_no_pictures() -> list[str]:
    """Return the sentence on why neither curves nor page can be drawn, if so."""
    try:
        check_installed("matplotlib", "curves.png and report.html are left out: drawing them")
    except UserError as error:
        return [str(error)]
    return []
