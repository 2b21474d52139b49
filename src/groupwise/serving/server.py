"""The server: where it listens, and how it ends."""

import logging
import socket
import sys
import threading

import uvicorn
from starlette.types import ASGIApp

from groupwise.errors import UserError, argument
from groupwise.interruption import MOMENT, Interrupted, on_signals

BACKLOG = 256
"""Connections that may wait to be taken."""


def open_listener(host: str = "127.0.0.1", port: int = 8000) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: an address of this machine, or a name of one.
        port: 0 for any that is free.

    Raises:
        UserError: nothing can listen there.

    Examples:
        >>> with open_listener(port=0) as listener:
        ...     address_of(listener).startswith("http://127.0.0.1:")
        True
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"{argument('host', host)}: is no address of this machine ({error.strerror})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # where it would let another process take the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"{argument('port', port)} of {host}: {reason}; choose another, or 0 for any that is free"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the address at which a browser finds what listens.

    Examples:
        >>> with open_listener("127.0.0.1", 0) as listener:
        ...     address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        True
    """
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: ASGIApp, listener: socket.socket, seconds: float = 30.0) -> None:
    """Answer until a signal asks the process to end; then answer what is on its way, unless a second one comes.

    Args:
        app: what answers.
        listener: closed at the end.
        seconds: for what is on its way at the end.

    Raises:
        Interrupted: as it ends by a signal, with its number.
    """
    # A request that is wrong is answered, and is no news for whoever watches.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=max(1, round(seconds)),
    )
    server = uvicorn.Server(config)
    numbers: list[int] = []

    def end(number: int) -> None:
        numbers.append(number)
        server.should_exit = True
        if len(numbers) > 1:
            raise KeyboardInterrupt

    # In a thread of its own, it leaves signals to us.
    thread = threading.Thread(target=server.run, args=([listener],), name="groupwise-server", daemon=True)
    with on_signals(end):
        thread.start()
        while thread.is_alive():
            thread.join(MOMENT)  # without an end to it, no signal would come through on Windows
    if numbers:
        raise Interrupted("stopped", numbers[0])
