"""What asks a process to end, Ctrl-C first of all: as a function's call, or a request that the running batch obeys."""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

# Ctrl-C; what the system, a batch queue or a container sends; SLURM before it kills, where it is asked to; a terminal
# that was closed; Windows' Ctrl-Break.
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
MOMENT = 0.05  # seconds


@contextmanager
def on_signals(handle: Callable[[int], Any]) -> Iterator[None]:
    """While it is entered, let a function be called with the number of each signal that asks the process to end.

    Signals that are ignored stay so, as under nohup. Python hands signals to the main thread only; elsewhere nothing
    is changed, and the caller has its own way to stop.

    A KeyboardInterrupt that the function raises is lost where Python runs something that nobody called: a destructor,
    or a callback of the garbage collector, of which JAX has one. The function is then called once more.
    """
    previous = {}
    heard: list[int] = []

    def hear(number: int, _: Any) -> None:
        heard.append(number)
        handle(number)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, hear)
    try:
        with _repeated(heard):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _repeated(heard: list[int]) -> Iterator[None]:
    """Let the newest signal come again, a moment later, where what it raised was lost."""
    before, over = sys.unraisablehook, threading.Event()

    def on_lost(lost: Any) -> None:
        if not heard or not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        done = threading.Event()
        threading.Thread(target=again, args=(done, heard[-1]), daemon=True).start()
        done.set()

    def again(done: threading.Event, number: Any) -> None:
        # Not while the hook runs, however long that takes: it would be lost as well.
        done.wait()
        if not over.wait(MOMENT):
            _thread.interrupt_main(number)

    sys.unraisablehook = on_lost
    try:
        yield
    finally:
        sys.unraisablehook = before
        over.set()


class Interrupted(Exception):  # noqa: N818 - not an error of the program's
    """Someone pressed Ctrl-C, or a signal asked the process to end; its text says what was kept.

    Attributes:
        number: the signal's.
        resumable: whether what was kept can go on.
    """

    def __init__(self, text: str, number: int = signal.SIGINT, resumable: bool = False) -> None:
        super().__init__(text)
        self.number = number
        self.resumable = resumable


class Interruption:
    """While it is entered, the first signal to end sets `requested`; a second one raises KeyboardInterrupt.

    Attributes:
        number: the newest signal's; Ctrl-C's before there is one.
    """

    def __init__(self) -> None:
        self.requested = False
        self.number: int = signal.SIGINT
        self._handlers: AbstractContextManager[None] = on_signals(self._on_signal)

    def __enter__(self) -> "Interruption":
        self._handlers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handlers.__exit__(kind, error, traceback)

    def _on_signal(self, number: int) -> None:
        self.number = number
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
