"""How a training ends before its last epoch. Importing this imports no framework."""

from groupwise.errors import argument


class StopTraining(Exception):  # noqa: N818 - a way out of fit()
    """Leaves fit() at once. Its text is the reason, empty for Ctrl-C."""


class Diverged(Exception):  # noqa: N818 - not an error of the program's
    """The loss is not a finite number any more; the text says what is left, and what to do.

    Args:
        reason: a clause.
        kept: a clause that says what is left.
        learning_rate: of the training.
    """

    def __init__(self, reason: StopTraining, kept: str, learning_rate: float) -> None:
        smaller = argument("learning_rate", f"{learning_rate / 5:g}")
        super().__init__(f"{reason}; {kept}. Begin again with a smaller rate: {smaller}")
