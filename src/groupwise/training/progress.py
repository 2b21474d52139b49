"""What a training shows while it runs: one moving bar, and a line for each finished epoch."""

import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

INTERVAL = 0.2  # seconds between two updates of the bar


class ProgressBar:
    """A bar over all epochs, with images per second and the time left; nothing where no one looks at a terminal.

    A terminal or a reader that has gone does not stop the training.

    Args:
        console: where it is shown.
        epochs: of the whole training.
        steps: of one epoch.
        first_step: how many steps were done before.
    """

    def __init__(self, console: Console, epochs: int, steps: int, first_step: int) -> None:
        self._epochs = epochs
        self._shown = 0.0
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(epochs), markup=False),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        epoch = min(first_step // steps + 1, epochs)
        self._task = self._progress.add_task("", total=epochs * steps, completed=first_step, epoch=epoch, status="")

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with suppress(OSError):
            self._progress.stop()

    def update(
        self, step: int, epoch: int, logs: Mapping[str, float], images: int, seconds: float, waited: float
    ) -> None:
        """Show the state after a step.

        Args:
            step: steps done, of all epochs.
            epoch: the current one, from 1.
            logs: Keras's, with loss and accuracy.
            images, seconds: trained on in this epoch, and how long that took.
            waited: seconds of these in which there was no input.
        """
        now = time.perf_counter()
        if now - self._shown < INTERVAL:
            return
        self._shown = now
        status = (
            f"{images / max(seconds, 1e-9):,.0f} images/s  loss {logs['loss']:.3f}  "
            f"accuracy {logs['accuracy']:.1%}  waited {min(waited / max(seconds, 1e-9), 1):.0%}"
        )
        with suppress(OSError):
            self._progress.update(self._task, completed=step, epoch=epoch, status=status)

    def say(self, line: Text) -> None:
        """Print a line above the bar."""
        with suppress(OSError):
            self._progress.console.print(line, soft_wrap=True)
