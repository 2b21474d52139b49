"""Observers of a training: a log, lines of text, a file of JSON. Importing this imports no framework."""

import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from groupwise.texts import json_text, printable
from groupwise.training.events import EndedEarly, Event, Noted, Retried, StepDone
from groupwise.writing import check_file, expanded

LOGGER = logging.getLogger("groupwise.training")


def log(event: Event) -> None:
    """Tell Python's logger "groupwise.training": as warnings what may mislead or ends a training, the rest as info.

    Where no program has set up logging, Python shows the warnings alone.
    """
    level = logging.WARNING if isinstance(event, Noted | Retried | EndedEarly) else logging.INFO
    for line in map(printable, event.lines()):
        LOGGER.log(level, "%s", line)


class TextObserver:
    """Writes each event's lines as plain text, in a notebook for instance.

    Args:
        file: where to. Default: standard output, as it is at that moment.

    Examples:
        >>> TextObserver()(Noted("the data has grown"))
        the data has grown
    """

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file

    def __call__(self, event: Event) -> None:
        lines = "".join(f"{printable(line)}\n" for line in event.lines())
        file = self._file or sys.stdout
        if lines and file is not None:
            file.write(lines)
            file.flush()


class FileObserver:
    """Adds events to a file, each as a line of JSON with its time; a training that is resumed goes on with the file.

    A disk that becomes full does not stop the training.

    Args:
        path: of the file.
        steps: whether single steps are written, too.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str | Path, steps: bool = False) -> None:
        self._path, self._steps = expanded(path), steps
        check_file(self._path, f"log {self._path}")

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and not self._steps:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json_text({"time": now, **event.as_dict()}, indent=None)
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
