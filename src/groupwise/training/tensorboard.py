"""An observer that writes what TensorBoard shows. Importing this imports no framework, TensorFlow least of all."""

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from groupwise.errors import check_installed
from groupwise.training.events import EndedEarly, EpochEnded, Event, Finished, FitBegun, StepDone
from groupwise.writing import expanded

INTERVAL = 1.0  # seconds between two steps that are written


class TensorBoardObserver:
    """Writes a training's numbers to TensorBoard's files: each epoch's row of metrics.csv, and now and then a step's.

    A training that goes on, or goes back, takes the place of what was written from there on. A disk that becomes full
    does not stop the training.

    Args:
        folder: of the files; made when there is something to write.

    Raises:
        UserError: tensorboardX is not installed: the extra "tensorboard" brings it.

    Examples:
        >>> observer = TensorBoardObserver("run/tensorboard")  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        check_installed("tensorboardX", "writing TensorBoard's files", "tensorboard")
        self._folder = expanded(folder)
        self._writer: Any = None
        self._steps = self._first = 0
        self._written = 0.0

    def __call__(self, event: Event) -> None:
        with suppress(OSError):
            match event:
                case FitBegun():
                    self._steps, self._first = event.steps, event.finished * event.steps + event.first + 1
                    self._close()
                case StepDone() if time.monotonic() - self._written >= INTERVAL:
                    self._written = time.monotonic()
                    numbers = {"step_loss": event.loss, "step_accuracy": event.accuracy}
                    self._write((event.epoch - 1) * self._steps + event.step, numbers)
                case EpochEnded():
                    self._write(event.epoch * self._steps, event.numbers)
                case EndedEarly() | Finished():
                    self._close()

    def _write(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2

        if self._writer is None:
            self._open()
        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        summary = summary_pb2.Summary(value=values)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # SummaryWriter's thread would wait for a full disk
        from tensorboardX.proto import event_pb2

        self._folder.mkdir(parents=True, exist_ok=True)
        # Its names have seconds alone.
        self._writer = EventsWriter(str(self._folder / "events"), f".{secrets.token_hex(4)}")
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(event_pb2.Event(wall_time=time.time(), step=self._first, session_log=started))

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
