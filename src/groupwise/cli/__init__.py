"""The command `groupwise`. Importing this package imports neither Keras nor a framework."""

import sys
from collections.abc import Sequence

from groupwise.errors import UserError, check_installed

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: `groupwise.cli.application.main`, where what it needs is installed."""
    try:
        check_installed("typer", "the command groupwise")
        from groupwise.cli import application
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:  # the import takes a moment, and what it brings catches signals from then on
        sys.stderr.write("groupwise: stopped\n")
        return 130

    return application.main(arguments)
