"""A training on several devices and processes: who they are, and what they do as one."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any

import keras

from groupwise import backends
from groupwise.data import ImageBatches
from groupwise.errors import UserError, argument, first_line
from groupwise.inference.evaluation import Evaluation, evaluate, merged
from groupwise.interruption import Interrupted
from groupwise.launchers import ALONE, Place, find_place
from groupwise.peers import Peers, end_at_exit
from groupwise.training.stopped import Diverged

_MOMENT = 3.0
"""Seconds in which the end of another process is noticed, where that is why this one ends."""


class Distribution:
    """The processes and devices that a training runs on, every one with an equal part of each batch.

    On JAX all devices of all processes are used, by Keras's `DataParallel` and JAX's distributed runtime, unless there
    is a `keras.distribution` already; on PyTorch one of each process, by `DistributedDataParallel`. TensorFlow trains
    on one. Batch norms see the whole batch.

    Enter it before anything is computed, as all processes do, and train in it. Where one process ends by an error or is
    killed, all end.

    Args:
        place: of this process among the others. Default: what started it says (torchrun, SLURM, MPI, Kubernetes), or it
            is one already (in a function that Ray Train calls, for example); else it is on its own.
        synchronizes: whether batch norms see the batches of all processes, rather than of this one alone. JAX knows no
            other way.

    Attributes:
        index: of this process, from 0; process 0 writes the run's folder.
        count: of processes.

    Raises:
        UserError: the framework trains in one process, or what is given or found is contradictory.

    Examples:
        >>> with Distribution() as distribution:
        ...     distribution.index, distribution.count
        (0, 1)
    """

    def __init__(self, place: Place | None = None, *, synchronizes: bool = True) -> None:
        self.index, self.count = 0, 1
        self.synchronizes = synchronizes
        self._engine = backends.active.distribution
        self._is_own = self._ends_alone = False
        self._peers: Peers | None = None
        place = place or find_place()
        self._place = None if place is None or place.count == 1 else place
        if self._place is not None and self._engine is None:
            raise UserError(
                f"{self._place.count} processes, started by {self._place.launcher}: TensorFlow trains in one alone; "
                f"take JAX ({argument('backend', 'jax')}) or PyTorch ({argument('backend', 'torch')})"
            )
        if not synchronizes and keras.backend.backend() == "jax":
            raise UserError(f"{argument('synchronizes', False)}: on JAX a batch norm sees the batch of all devices")

    @classmethod
    def alone(cls) -> "Distribution":
        """Return that of this process alone. Raises UserError where it is one of several."""
        engine = backends.active.distribution
        if engine is not None and engine.is_joined():
            says = "this process is one of several, which train as one in a `groupwise.training.Distribution`"
            raise UserError(f"{argument('distribution')}: must be given: {says}")
        return cls(ALONE)

    def __enter__(self) -> "Distribution":
        engine, place = self._engine, self._place
        if engine is not None and place is not None and not engine.is_joined():
            self._meet(lambda: engine.join(place))
            self._is_own = True
        if engine is not None and engine.is_joined():
            self.index, self.count = engine.place()
            self._peers = self._meet(lambda: Peers(self.index, self.count, self.gather, place.host if place else ""))
        return self

    def _meet(self, call: Callable[[], Any]) -> Any:
        """Return what a call returns that waits for the others. Raises UserError where they are not there."""
        try:
            return call()
        except (RuntimeError, ValueError, OSError) as error:
            where = "" if self._place is None else f" at {self._place.coordinator}"
            raise UserError(f"this process did not meet the others{where}: {first_line(error)}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._peers is None or self._engine is None:
            return
        # These end all processes at the same step.
        is_together = isinstance(error, Interrupted | Diverged) and not self._ends_alone
        if error is not None and not is_together:
            if self.index or not isinstance(error, UserError):
                # Perhaps it is another one's end that this one met; or process 0 says the same, and better.
                time.sleep(_MOMENT)
            self._peers.fail(first_line(error))  # type: ignore[arg-type]
            end_at_exit()
            return
        self._peers.leave()
        if self._is_own:
            self._engine.leave()

    def __str__(self) -> str:
        own, of_all = (1, 1) if self._engine is None else self._engine.devices()
        devices = "1 device" if own == 1 else f"{own} devices"
        if self.count == 1:
            return devices
        started = "" if self._place is None else f", started by {self._place.launcher}"
        return f"process {self.index} of {self.count} (from 0), {devices} of {of_all}{started}"

    @property
    def device_count(self) -> int:
        """How many devices compute, those of all processes."""
        return 1 if self._engine is None else self._engine.devices()[1]

    def hint(self, text: str) -> None:
        """Let the sentence that says of the end of another process end with a clause."""
        if self._peers is not None:
            self._peers.hint = text

    def end_alone(self) -> None:
        """Let the others be told, when this process leaves them, that it has ended: they would wait for it."""
        self._ends_alone = True

    def gather(self, value: Any) -> list[Any]:
        """Return what each process gave, by index; a call of all of them. What is given travels as a pickle."""
        return [value] if self.count == 1 or self._engine is None else self._engine.gather(value)

    def first(self, value: Any) -> Any:
        """Return what process 0 gave; a call of all of them."""
        return self.gather(value if self.index == 0 else None)[0]

    def check_batch(self, batch_size: int, pieces: int = 1) -> None:
        """Raise UserError where the pieces of a batch cannot be divided evenly among the devices."""
        count = self.device_count * pieces
        if self.device_count > 1 and batch_size % count:
            among = f"{self.device_count} devices{f', in {pieces} steps' if pieces > 1 else ''}"
            fitting = f": take {batch_size // count * count}" if batch_size > count else ""
            says = f"the images of a batch are divided evenly among {among}{fitting}"
            raise UserError(f"{argument('batch_size', batch_size)}: {says}")

    def scope(self) -> AbstractContextManager[Any]:
        """Return a scope to make, compile and train a network in."""
        if self._engine is None or self.device_count == 1 or keras.distribution.distribution() is not None:
            return nullcontext()
        return self._engine.scope()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """While it is entered, let this process compute on its own: what the others do not do, such as saving."""
        every = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(every)

    def prepare(self, network: keras.Model) -> None:
        """Let a compiled network train with those of the other processes."""
        if self._engine is not None:
            self._engine.prepare(network, self.synchronizes)

    def evaluate(self, network: keras.Model, batches: ImageBatches) -> Evaluation:
        """Return the evaluation of all images, of which each process looks at its part, and has its outputs."""
        predict = None if self._engine is None or self.device_count == 1 else self._engine.predictor(network)
        own = evaluate(network, batches, predict=predict) if len(batches) else None
        # What is said of each image stays where it is: it would travel after every epoch.
        sent = None if own is None or self.count == 1 else replace(own, outputs=None)
        every = [own] if self.count == 1 else self.gather(sent)
        whole = merged([part for part in every if part is not None])
        return whole if own is None else replace(whole, outputs=own.outputs)


class Agreement:
    """What all processes do after a step, the same in each: about once a second they ask what every one wants.

    Args:
        distribution: the processes. To ask takes them some milliseconds, and they wait for one another.
    """

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        # How long a step takes is known from the second time on: that is after the next one.
        self._asked, self._next, self._time = 0, 0, -math.inf

    def on(self, step: int, wants: Sequence[int], now: bool) -> list[int]:
        """Return of each thing the largest number that a process wants of it; of 0, nothing is wanted.

        Args:
            step: of the training, the same in all processes. wants: by this process.
            now: whether the processes ask at this step in any case, which all of them know.
        """
        if self._distribution.count == 1:
            return list(wants)
        if step < self._next and not now:
            return [0] * len(wants)
        seconds = (time.monotonic() - self._time) / max(1, step - self._asked)
        every = self._distribution.gather((list(wants), seconds))
        slowest = max(seconds for _, seconds in every)
        self._asked, self._next, self._time = step, step + max(1, int(1 / max(slowest, 1e-3))), time.monotonic()
        return [max(numbers) for numbers in zip(*(wanted for wanted, _ in every), strict=True)]
