"""The command as a whole: its sub-commands, its version, and how it ends."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from groupwise.cli import converting, explaining, exporting, networks, rewriting, training, tuning, using
from groupwise.errors import UserError
from groupwise.training.stopped import Stopped

# Typer carries Click's classes along under a private name; this is its UsageError.
_UsageError: Any = typer.BadParameter.__bases__[0]

INTERRUPTED = 130  # the exit code after Ctrl-C

app = typer.Typer(
    name="groupwise",
    help="Train, evaluate and use networks made of grouped, depthwise and separable convolutions.\n\n"
    "Try it: [bold]groupwise train digits[/bold]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            number = version("groupwise")
        except PackageNotFoundError:
            number = "(not installed: run from its source)"
        print(f"groupwise {number}")
        raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for command in (
    training.train,
    using.evaluate,
    using.predict,
    converting.convert,
    rewriting.accelerate,
    rewriting.factorize,
    exporting.export,
    networks.models,
    networks.describe,
    networks.routing,
    tuning.tune,
    explaining.explain,
    training.recipes,
):
    needs_none = (networks.models, networks.routing, tuning.tune, training.recipes)
    app.command(no_args_is_help=command not in needs_none)(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: without the program's name; None takes the process's.

    Returns:
        0; 1 where a training diverged; 2 for bad input or arguments; 130 after Ctrl-C.
    """
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="groupwise", standalone_mode=False)
    except UserError as error:
        return _fail(str(error), 2)
    except Stopped as stopped:
        return _fail(str(stopped), stopped.exit_code)
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        message = str(error.format_message()).rstrip(".")
        return _fail(message + hint, 2) if message else 2  # without arguments the help was printed
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; Python would complain while it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    # Typer turns Ctrl-C into this code, without a word.
    return _fail("stopped", INTERRUPTED) if code == INTERRUPTED else code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print(f"groupwise: {message}", file=sys.stderr)
    return code
