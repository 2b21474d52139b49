"""What stands before the answers: whose pages may ask, how much a request may hold, and what browsers are told."""

import asyncio
import ipaddress
import socket
from collections.abc import Collection, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groupwise.serving.answers import failure

PATIENCE = 2.0
"""Seconds for which a request that is refused may go on sending: who still sends does not see the answer."""

_FOR_BROWSERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NOTHING_LOADS = "default-src 'none'; frame-ancestors 'none'"


def own_names(host: str) -> frozenset[str]:
    """Return the names, in small letters, by which a browser may call a server that is bound to `host`.

    Addresses are names of their own, whatever they are: no other page's name can lead to one.
    """
    return frozenset({"localhost", host.lower(), socket.gethostname().lower()})


def too_large(most_bytes: int) -> HTTPException:
    """Return the refusal of a request that holds more than so many bytes."""
    return HTTPException(413, f"the request is too large: it may hold {most_bytes:,} bytes")


class Guard:
    """An application behind its checks.

    A page of somebody else's in the user's browser cannot use it: not by a name of its own that leads here (DNS
    rebinding), since the header Host must be one of ours, nor by asking across origins, since Origin must be ours too.

    Args:
        app: what answers.
        names: by which it may be called beside addresses: `own_names`.
        most_bytes: that a request may hold; counted as they come.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], most_bytes: int) -> None:
        self._app = app
        self._names = names
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._most_bytes)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and "expect" not in headers:
                    await body.drain()
                _tell_browsers(message)
            await send(message)

        objection = self._objection(headers)
        if objection is not None:
            await failure(403, objection)(scope, receive, send_guarded)
        elif _declared(headers) > self._most_bytes:
            refusal = too_large(self._most_bytes)
            await failure(refusal.status_code, refusal.detail)(scope, receive, send_guarded)
        else:
            await self._app(scope, body.receive, send_guarded)

    def _objection(self, headers: Headers) -> str | None:
        """Return why a request is refused for where it comes from; None where it is not."""
        host = headers.get("host", "")
        name = _name_of(host)
        if not (name in self._names or _is_address(name)):
            return "the header Host is not this server's: call it localhost, or by its address"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return "the header Origin is another page's: only this server's own page may ask from a browser"
        return None


class _Body:
    """A request's body as it comes, counted."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self._receive = receive
        self._most_bytes = most_bytes
        self._taken = 0
        self._goes_on = True

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the next message. Raises HTTPException (413) when there are too many bytes."""
        message = await self._next()
        if self._taken > self._most_bytes:
            raise too_large(self._most_bytes)
        return message

    async def drain(self) -> None:
        """Let as much again as a request may hold come and go, but no longer than `PATIENCE`."""
        most = self._taken + self._most_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self._goes_on and self._taken <= most:
                    await self._next()

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self._taken += len(message.get("body", b""))
        self._goes_on = message["type"] == "http.request" and message.get("more_body", False)
        return message


def _tell_browsers(message: Message) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in _FOR_BROWSERS.items():
        headers[name] = value
    headers.setdefault("Content-Security-Policy", _NOTHING_LOADS)


def _declared(headers: Headers) -> int:
    """Return how many bytes a request says that it holds; 0 where it does not."""
    text = headers.get("content-length", "0")
    return int(text) if text.isdecimal() else 0


def _name_of(host: str) -> str:
    """Return the name in a header Host, in small letters and without the port and the brackets of an IPv6 address."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
