"""Processes that compute together, as far as they live: where one ends, all do, and it is said which and why.

A process that waits for what another one has computed waits for ever, or for minutes, where that one was killed; and
each framework says so in its own way, in many lines. Here every process holds a connection to process 0 open, which the
system closes when a process ends, however it ends.
"""

import atexit
import json
import os
import secrets
import selectors
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_LOST = "was killed, or cannot be reached any more"
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""After so many seconds of silence, how often and how many times the system asks whether the other side is there."""


def end_at_exit() -> None:
    """Let the process end at once, with status 1, when Python has ended: a framework would wait for the others."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    atexit.register(end)


class Peers:
    """A watch over the other processes, from its making to `leave` or `fail`.

    Args:
        index, count: of this process and of all.
        gather: a collective call: takes something of every process and returns all of it, by index.
        host: under which process 0's machine is known; "" for its own name.
        end: called, in a thread, with the sentence where another process has ended; None prints it, on process 0 (and
            on process 1 where that is the one), and ends this process at once with status 1.

    Attributes:
        hint: a clause that the sentence ends with.
    """

    def __init__(
        self,
        index: int,
        count: int,
        gather: Callable[[Any], list[Any]],
        host: str,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._index, self._count, self._end, self.hint = index, count, end, ""
        self._over = threading.Event()
        self._selector = selectors.DefaultSelector()
        server = socket.create_server(("", 0)) if index == 0 else None
        port, token = 0 if server is None else server.getsockname()[1], secrets.token_hex()
        (port, token, _), *_ = known = gather((port, token, socket.gethostname()))
        self._hosts = [name for _, _, name in known]
        if server is None:
            connection = socket.create_connection((host or self._hosts[0], port), timeout=60)
            self._say(connection, {"index": index, "token": token})
            self._watch(connection, 0)
        else:
            with server:
                server.settimeout(60)
                while len(self._selector.get_map()) < count - 1:
                    self._welcome(server.accept()[0], token)
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def leave(self) -> None:
        """End the watch, as all processes do."""
        self._tell({"bye": True})

    def fail(self, why: str) -> None:
        """Tell the others that this process ends, and why; all of them end."""
        self._tell({"failed": [self._index, why]})

    def _welcome(self, connection: socket.socket, token: str) -> None:
        """Watch who knows the token; others, who look for open ports, are sent away."""
        connection.settimeout(60)
        with suppress(OSError, ValueError, KeyError, TypeError):
            message = json.loads(connection.makefile().readline(1000))
            if message["token"] == token:
                self._watch(connection, message["index"])
                return
        connection.close()

    def _watch(self, connection: socket.socket, index: int) -> None:
        connection.settimeout(60)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._selector.register(connection, selectors.EVENT_READ, index)

    def _tell(self, message: dict[str, Any], but: int | None = None) -> None:
        self._over.set()
        for key in list(self._selector.get_map().values()):
            if key.data != but:
                self._say(key.fileobj, message)

    @staticmethod
    def _say(connection: Any, message: dict[str, Any]) -> None:
        with suppress(OSError):
            connection.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        while self._selector.get_map():
            for key, _ in self._selector.select():
                connection: Any = key.fileobj
                try:
                    text = connection.makefile().readline()
                except OSError:
                    text = ""
                message = json.loads(text) if text else {"failed": [key.data, _LOST]}
                self._selector.unregister(connection)
                connection.close()
                if "failed" in message and not self._over.is_set():
                    self._tell(message, but=key.data)
                    self._ended(*message["failed"])

    def _ended(self, index: int, why: str) -> None:
        who = f"process {index} of {self._count} (on {self._hosts[index]})"
        hint = "" if "resume" in why else self.hint  # it says so itself
        sentence = "; ".join(filter(None, (f"{who} has ended, and so do all: {why}", hint)))
        if self._end is not None:
            self._end(sentence)
            return
        if self._index == (1 if index == 0 else 0):
            sys.stderr.write(f"{sentence}\n")
            sys.stderr.flush()
        os._exit(1)
