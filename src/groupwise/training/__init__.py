"""Training. Importing this package imports no framework; its members do."""

from typing import TYPE_CHECKING

from groupwise.lazy import members_at_use

if TYPE_CHECKING:
    from groupwise.training.distribution import Distribution
    from groupwise.training.fit import train
    from groupwise.training.notebook import NotebookObserver
    from groupwise.training.observers import FileObserver, TextObserver
    from groupwise.training.plan import Plan, extend_plan, make_plan
    from groupwise.training.rehearsal import Rehearsal, rehearse
    from groupwise.training.resuming import read_plan
    from groupwise.training.summary import RunSummary
    from groupwise.training.tensorboard import TensorBoardObserver
else:
    __getattr__, __dir__ = members_at_use(
        __name__,
        {
            "Distribution": "distribution",
            "FileObserver": "observers",
            "NotebookObserver": "notebook",
            "Plan": "plan",
            "Rehearsal": "rehearsal",
            "RunSummary": "summary",
            "TensorBoardObserver": "tensorboard",
            "TextObserver": "observers",
            "extend_plan": "plan",
            "make_plan": "plan",
            "read_plan": "resuming",
            "rehearse": "rehearsal",
            "train": "fit",
        },
    )

__all__ = [
    "Distribution",
    "FileObserver",
    "NotebookObserver",
    "Plan",
    "Rehearsal",
    "RunSummary",
    "TensorBoardObserver",
    "TextObserver",
    "extend_plan",
    "make_plan",
    "read_plan",
    "rehearse",
    "train",
]
