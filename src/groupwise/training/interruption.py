"""What asks a process to end, Ctrl-C first of all: as a function's call, or a request that the running batch obeys."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

# Ctrl-C; what the system, a batch queue or a container sends; a terminal that was closed; Windows' Ctrl-Break.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


@contextmanager
def on_signals(handle: Callable[[int], Any]) -> Iterator[None]:
    """While it is entered, let a function be called with the number of each signal that asks the process to end.

    Signals that are ignored stay so, as under nohup. Python hands signals to the main thread only; elsewhere nothing
    is changed, and the caller has its own way to stop.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                previous[number] = signal.signal(number, lambda number, _: handle(number))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
