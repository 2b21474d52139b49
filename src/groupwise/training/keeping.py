"""Writing checkpoints while a training goes on: it waits for the copy alone."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from groupwise.errors import UserError
from groupwise.training import checkpoints
from groupwise.training.checkpoints import Checkpoint, Interval


class Keeper:
    """Writes checkpoints in a thread of its own, and keeps the newest ones.

    A checkpoint that cannot be written (a full disk) is left out: the ones before stay, and the training goes on.

    Args:
        folder: where they lie.
        interval: how often one is due.
        kept: how many stay.
        keeps_end: whether that of the last epoch's end stays beside them.
    """

    def __init__(self, folder: Path, interval: Interval, kept: int, keeps_end: bool = False) -> None:
        self._folder, self._interval, self._kept, self._keeps_end = folder, interval, kept, keeps_end
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._pending: Future[None] | None = None
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after so many steps, and the one before is written."""
        if self._pending is not None and not self._pending.done():
            return False
        if self.counts(step):
            return True
        return self._interval.seconds is not None and time.monotonic() - self._last >= self._interval.seconds

    def counts(self, step: int) -> bool:
        """Return whether a checkpoint may be due after so many steps because of their number."""
        return self._interval.steps is not None and step % self._interval.steps == 0

    def keep(self, checkpoint: Checkpoint) -> list[str]:
        """Begin to write a checkpoint, when the one before is written; return why that could not be, if so."""
        failures = self.wait()
        self._last = time.monotonic()
        self._pending = self._writer.submit(self._write, checkpoint)
        return failures

    def wait(self) -> list[str]:
        """Return when nothing is being written; and why the last one could not be, if so."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except UserError as error:
            return [f"{error}; the training goes on, and can be resumed from the checkpoint before"]
        return []

    def close(self) -> None:
        """End the thread, when it has written what there is."""
        self._writer.shutdown()

    def _write(self, checkpoint: Checkpoint) -> None:
        if not all(np.isfinite(array).all() for array in checkpoint.arrays.values() if array.dtype.kind == "f"):
            return  # the training is about to end for that; what was before can go on
        checkpoints.write(self._folder, checkpoint)
        files = checkpoints.paths(self._folder)
        ends = [path for path in files if checkpoints.step_of(path) % checkpoint.steps == 0]
        for path in files[self._kept :]:
            if not self._keeps_end or path not in ends[:1]:
                path.unlink(missing_ok=True)
