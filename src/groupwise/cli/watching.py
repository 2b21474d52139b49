"""What a training shows on a console: its lines, one moving bar, and a line for each finished epoch."""

import time
from contextlib import suppress
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from groupwise.cli.console import Console, note, print_lines, say
from groupwise.training.events import (
    Begun,
    EpochEnded,
    Event,
    Finished,
    FitBegun,
    FitEnded,
    Noted,
    ReadingBegun,
    ReadingEnded,
    Retried,
    StepDone,
    WeightsTaken,
)

INTERVAL = 0.2  # seconds between two updates of the bar


class ConsoleObserver:
    """Shows a training on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Any = None
        self._bar: ProgressBar | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Begun():
                print_lines(self._console, event.facts())
                for text in event.dataset.notes:
                    note(text)
            case Noted() | Retried() | Finished():
                for line in event.lines():
                    say(self._console, line)
            case WeightsTaken():
                print_lines(self._console, {"weights": event.text})
            case ReadingBegun():
                self._status = self._console.status("reading images")
                self._status.start()
            case ReadingEnded():
                self._status.stop()
            case FitBegun():
                self._bar = ProgressBar(self._console, event)
            case StepDone() | EpochEnded() | FitEnded() if self._bar is not None:
                self._bar.show(event)


class ProgressBar:
    """A bar over all epochs, with images per second and the time left; nothing where no one looks at a terminal.

    A terminal or a reader that has gone does not stop the training.

    Args:
        console: where it is shown.
        begun: of how many epochs and steps.
    """

    def __init__(self, console: Console, begun: FitBegun) -> None:
        self._steps = begun.steps
        self._shown = 0.0
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(begun.epochs), markup=False),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(
            "",
            total=begun.epochs * begun.steps,
            completed=begun.finished * begun.steps + begun.first,
            epoch=begun.finished + 1,
            status="",
        )
        self._progress.start()

    def show(self, event: StepDone | EpochEnded | FitEnded) -> None:
        """Move the bar, print an epoch's line above it, or take it away."""
        with suppress(OSError):
            match event:
                case StepDone():
                    self._move(event)
                case EpochEnded():
                    line = Text(event.lines()[0])
                    line.highlight_regex(rf"(?<={event.judged_by} accuracy )\S+", "bold")
                    self._progress.console.print(line, soft_wrap=True)
                case FitEnded():
                    self._progress.stop()

    def _move(self, event: StepDone) -> None:
        now = time.perf_counter()
        if now - self._shown < INTERVAL:
            return
        self._shown = now
        seconds = max(event.seconds, 1e-9)
        status = (
            f"{event.images / seconds:,.0f} images/s  loss {event.loss:.3f}  "
            f"accuracy {event.accuracy:.1%}  waited {min(event.seconds_waited / seconds, 1):.0%}"
        )
        done = (event.epoch - 1) * self._steps + event.step
        self._progress.update(self._task, completed=done, epoch=event.epoch, status=status)
