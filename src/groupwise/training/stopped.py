"""How a training can end before its last epoch; importing this imports no framework."""

import signal


class Stopped(Exception):  # noqa: N818 - not an error of the program's
    """A training ended early; its text says what was kept and what to do.

    Attributes:
        exit_code: the command's.
    """

    exit_code = 1


class Interrupted(Stopped):
    """Someone pressed Ctrl-C, or a signal asked the process to end.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self, text: str, number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.exit_code = 128 + number


class Diverged(Stopped):
    """The loss is not a finite number any more."""
