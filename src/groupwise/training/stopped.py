"""How a training can end before its last epoch; importing this imports no framework."""


class Stopped(Exception):  # noqa: N818 - not an error of the program's
    """A training ended early; its text says what was kept and what to do.

    Attributes:
        exit_code: the command's.
    """

    exit_code = 1


class Interrupted(Stopped):
    """Someone pressed Ctrl-C."""

    exit_code = 130


class Diverged(Stopped):
    """The loss is not a finite number any more."""
