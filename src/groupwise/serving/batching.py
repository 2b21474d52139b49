"""Requests that come at the same time, put together into one prediction: one thread runs the network."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from groupwise.errors import UserError
from groupwise.inference import Explainer
from groupwise.inference.evaluation import probabilities
from groupwise.inference.outputs import predict_logits
from groupwise.models.network import Network, RewrittenNetwork

WINDOW = 0.002
"""Seconds that the first image of a batch waits for others."""

# A batch has one of these sizes, so that each is compiled, or recorded, once. Those beyond wait for the next batch:
# nothing is filled up. Heat maps are for people, who ask for few at a time.
_SIZES = {False: (1, 2, 4, 8, 16), True: (1, 4)}
_WARMING = 3  # calls after which a step is compiled or recorded on every framework

_logger = logging.getLogger("groupwise.serving")


class Answer(NamedTuple):
    """What a network says of an image.

    Attributes:
        probabilities: float32, of its classes.
        heat_map: float32, (rows, columns), from 0 to 1: where it looked; None where that was not asked for.
    """

    probabilities: NDArray[np.float32]
    heat_map: NDArray[np.float32] | None


class Closed(RuntimeError):  # noqa: N818 - what the batcher is
    """No more images are taken."""


class Failed(RuntimeError):  # noqa: N818 - what the network has
    """The network raised an error, which the log holds."""


@dataclass(frozen=True, eq=False)
class _Job:
    image: NDArray[np.float32]
    explains: bool
    explained: int | None
    answer: "Future[Answer]" = field(default_factory=Future)


class Batcher:
    """A network, and the thread that runs it on the images which wait, several at a time.

    Every size that a batch can have is run before the first image is taken, so that none waits for a compiler.

    Attributes:
        objection: why the network cannot say where it looked; None where it can.

    Args:
        network: with class names and preprocessing in its metadata.
        window: seconds that the first image of a batch waits for others.
    """

    def __init__(self, network: Network | RewrittenNetwork, window: float = WINDOW) -> None:
        self.objection: str | None = None
        self._window = window
        self._network = network
        self._explainer: Explainer | None = None
        try:
            self._explainer = Explainer(network)
        except UserError as error:
            self.objection = str(error)
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._warm = False
        # A daemon: a process that is told to end does not wait for a network that hangs.
        self._thread = threading.Thread(target=self._work, name="groupwise-serving", daemon=True)
        self._thread.start()
        try:
            self._warm_up(network.architecture["input_shape"])
        except Failed as failed:
            self.close()
            raise failed.__cause__ or failed from None
        self._warm = True

    def submit(
        self, image: NDArray[np.float32], explains: bool = False, explained: int | None = None
    ) -> "Future[Answer]":
        """Return what the network will say of an image; cancelled before its turn, it is not computed.

        Args:
            image: (height, width, channels), as the network wants it.
            explains: whether to say where it looked, too.
            explained: for which class; None for the likeliest one.

        Raises:
            ValueError: where it looked is asked for, and cannot be said: see `objection`.
            Closed: after `close`.
        """
        if explains and self._explainer is None:
            raise ValueError(f"explains=True: {self.objection}")
        job = _Job(image, explains, explained)
        with self._changed:
            if self._closed:
                raise Closed("the server ends")
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Answer what waits, take nothing more, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def is_alive(self) -> bool:
        """Return whether images are answered."""
        return self._thread.is_alive() and not self._closed

    def _warm_up(self, shape: Sequence[int]) -> None:
        """Run every size as often as compiling or recording it takes, in the thread that will run it."""
        noise = np.random.default_rng(0).standard_normal(tuple(shape)).astype(np.float32)
        kinds = (False, True) if self._explainer else (False,)
        jobs = [
            [_Job(noise, explains, None) for _ in range(size)]
            for explains in kinds
            for size in _SIZES[explains]
            for _ in range(_WARMING)
        ]
        for batch in jobs:
            with self._changed:
                self._jobs.extend(batch)
                self._changed.notify()
            for job in batch:
                job.answer.result()

    def _work(self) -> None:
        while batch := self._next():
            # An image whose request was given up meanwhile is filled up with zeros.
            running = [job for job in batch if job.answer.set_running_or_notify_cancel()]
            if not running:
                continue
            try:
                answers = self._run(running, len(batch))
            except Exception as error:  # whatever a framework raises ends these requests alone
                if self._warm:
                    _logger.exception("the network failed on a batch of %d images", len(running))
                failed = Failed("the network could not answer; the server's log says why")
                failed.__cause__ = error
                for job in running:
                    job.answer.set_exception(failed)
            else:
                for job, answer in zip(running, answers, strict=True):
                    job.answer.set_result(answer)

    def _next(self) -> list[_Job]:
        """Return the images of the next batch, which are of one kind; none after `close`, when all are answered."""
        with self._changed:
            while True:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                end = time.monotonic() + self._window
                while len(self._jobs) < _SIZES[False][-1] and not self._closed:
                    left = end - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
                waiting = [job for job in self._jobs if not job.answer.cancelled()]
                if not waiting and self._closed:
                    return []
                if waiting:
                    break
                self._jobs.clear()
            explains = waiting[0].explains
            same = [job for job in waiting if job.explains == explains]
            batch = same[: max(size for size in _SIZES[explains] if size <= len(same))]
            taken = set(map(id, batch))
            self._jobs = deque(job for job in waiting if id(job) not in taken)
            return batch

    def _run(self, jobs: Sequence[_Job], size: int) -> list[Answer]:
        images = np.stack([job.image for job in jobs])
        if not jobs[0].explains:
            logits = predict_logits(self._network, images, size)
            return [Answer(values, None) for values in probabilities(logits)]
        assert self._explainer is not None
        logits, maps = self._explainer.explain(images, [job.explained for job in jobs], size)
        return list(map(Answer, probabilities(logits), maps))
