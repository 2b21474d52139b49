"""How a training can end before its last epoch; importing this imports no framework."""

import signal


class Stopped(Exception):  # noqa: N818 - not an error of the program's
    """A training ended early; its text says what was kept."""


class Interrupted(Stopped):
    """Someone pressed Ctrl-C, or a signal asked the process to end.

    Attributes:
        number: the signal's.
        resumable: whether a run was kept that can go on.
    """

    def __init__(self, text: str, number: int = signal.SIGINT, resumable: bool = False) -> None:
        super().__init__(text)
        self.number = number
        self.resumable = resumable


class Diverged(Stopped):
    """The loss is not a finite number any more."""
