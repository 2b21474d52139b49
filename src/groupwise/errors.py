"""The one kind of error that a user, not a programmer, causes."""


class UserError(ValueError):
    """Bad input to the command: its text is a clear sentence, shown as it is, and the exit code is 2."""
