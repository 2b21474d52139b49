"""The command as a whole: its sub-commands, its version, and how it ends."""

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from groupwise import __version__
from groupwise.cli import (
    converting,
    diagnosing,
    explaining,
    exporting,
    networks,
    reporting,
    rewriting,
    serving,
    sharding,
    training,
    tuning,
    using,
)
from groupwise.cli.console import make_console, note, say
from groupwise.cli.options import VALUES, as_command, option
from groupwise.errors import UserError, lacks_memory, naming
from groupwise.interruption import Interrupted, on_signals
from groupwise.training.stopped import Diverged

# Typer carries Click's classes along under a private name; this is its UsageError.
_UsageError: Any = typer.BadParameter.__bases__[0]

INTERRUPTED = 128 + signal.SIGINT  # the exit code after Ctrl-C

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


class _Command(TyperCommand):
    """A command whose options may have a value or none, as `options.VALUES` says, and that refuses empty texts.

    An empty one would mean the current folder where a path is asked for.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = []
        for argument, following in pairwise([*args, ""]):
            values = VALUES.get(argument, ())
            given.append(f"{argument}={values[0]}" if values and following not in values else argument)
        return super().parse_args(ctx, given)

    def invoke(self, ctx: Any) -> Any:
        for parameter in self.params:
            given = ctx.params.get(parameter.name)
            for text in given if isinstance(given, list | tuple) else [given]:
                if isinstance(text, str) and not text.strip():
                    is_option = parameter.param_type_name == "option"
                    named = max(parameter.opts, key=len) if is_option else parameter.metavar or parameter.name.upper()
                    raise UserError(f"{named.rstrip('.')} {text!r}: is empty; `--help` says what it takes")
        return super().invoke(ctx)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(make_console(), f"groupwise {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    wanted: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


NEED_NOTHING = (networks.models, networks.routing, tuning.tune, training.recipes)
"""The commands that run without arguments; the others print their help then."""

for command in (
    training.train,
    using.evaluate,
    using.predict,
    reporting.report,
    serving.serve,
    converting.convert,
    sharding.shard,
    rewriting.accelerate,
    rewriting.factorize,
    exporting.export,
    networks.models,
    networks.describe,
    networks.routing,
    tuning.tune,
    explaining.explain,
    diagnosing.diagnose,
    training.recipes,
):
    app.command(cls=_Command, no_args_is_help=command not in NEED_NOTHING)(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: without the program's name; None takes the process's.

    Returns:
        0; 1 where a training diverged, or whoever read the output has gone; 2 for bad input or arguments, and for what
        cannot be read or written; 128 and the signal's number after Ctrl-C (130) and other signals to end.
    """
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        raise KeyboardInterrupt

    for stream in (sys.stdout, sys.stderr):
        # No name of a file or a class is one that a console's encoding lacks.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
    try:
        as_sentences = _warnings_as_notes() if arguments is None else nullcontext()
        with on_signals(end), naming(option, as_command), as_sentences:
            code = _run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        code = _fail("stopped", INTERRUPTED)
    except BrokenPipeError:
        _let_go_of_output()
        code = 1
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.filename is None:
            _let_go_of_output()
        code = _fail(f"{'the output' if error.filename is None else error.filename}: {reason}", 2)
    except Exception as error:
        if not lacks_memory(error):
            raise
        code = _fail("there is not enough memory for this: take smaller images, batches or networks", 2)
    code = 128 + received[-1] if received else code
    if code > 128 and arguments is None:
        _leave(code)
    return code


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Print warnings as what else a user should know, each once; those for programmers stay as they are."""
    before: Any = warnings.showwarning
    said = set[str]()

    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if not issubclass(category, UserWarning):
            before(message, category, *where, **more)
        elif str(message) not in said:
            said.add(str(message))
            note(" ".join(str(message).split()))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _leave(code: int) -> NoReturn:
    """End the process at once: what it had to write is written, and XLA may go on compiling in a thread of its own.

    Taken down meanwhile, as Python does when it ends, JAX 0.10 crashed (SIGSEGV instead of 143), or waited for it.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
            stream.flush()
    os._exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="groupwise", standalone_mode=False)
    except UserError as error:
        return _fail(str(error), 2)
    except Interrupted as stopped:
        return _fail(str(stopped), 128 + stopped.number)
    except Diverged as stopped:
        return _fail(str(stopped), 1)
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        # Pydantic, which checks values for Typer, begins some of its reasons so.
        message = str(error.format_message()).replace("Value error, ", "").rstrip(".") + _given(error)
        return _fail(message + hint, 2) if message else 2  # without arguments the help was printed
    except typer.Abort:
        return _fail("stopped", INTERRUPTED)
    # Typer turns Ctrl-C into this code, without a word.
    return _fail("stopped", INTERRUPTED) if code == INTERRUPTED else code if isinstance(code, int) else 0


def _given(error: Exception) -> str:
    """Return the value that Typer refused, as the end of its sentence, where pydantic's words leave it out."""
    errors = getattr(error.__cause__, "errors", None)
    if not callable(errors):
        return ""
    value = errors()[0]["input"]
    return "" if repr(value) in str(error) else f"; {value!r} was given"


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # nobody is there to be told
        note(message)
    return code


def _let_go_of_output() -> None:
    """Lead what standard output still holds nowhere; Python would complain when it closes the stream."""
    with suppress(OSError, ValueError, AttributeError):  # it is closed, or no file at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
