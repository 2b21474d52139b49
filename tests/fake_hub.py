"""A small Hugging Face hub on localhost: what `huggingface_hub` asks of the real one to download a file."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

LARGE = (".safetensors", ".bin")  # of these the hub tells the SHA-256, of others Git's SHA-1
RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Repository:
    """What a repository holds.

    Attributes:
        files: the files of every revision.
        revisions: those that there are, and each one's commit.
        token: what opens it; None: it is open to all.
        gated: without the token it is known, but closed.
    """

    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": "c0ffee" + "0" * 34})
    token: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Request:
    """One that was made for a file."""

    method: str
    repository: str
    revision: str
    name: str
    token: str | None
    range: str | None


class FakeHub:
    """The hub's contents, what was asked of it, and the troubles that it makes.

    Attributes:
        repositories: by "owner/name".
        requests: those for files, in order.
        replaced: bytes that are sent instead of a file's, by its name.
        breaks_after: the bytes of a body after which a connection ends, and later ones are refused.
        hangs: instead of ending there, the connection stays open, and `hanging` is set.
        status: what every request is answered with, unless None.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.replaced: dict[str, bytes] = {}
        self.breaks_after: int | None = None
        self.hangs = False
        self.hanging = Event()
        self.released = Event()
        self.status: int | None = None

    def asked(self, method: str) -> list[str]:
        """Return the names of the files that were asked for by a method, and forget all requests."""
        names = [request.name for request in self.requests if request.method == method]
        self.requests.clear()
        return names


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Let a hub run while the context is open."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> FakeHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its parent's name
        """Say nothing."""

    def do_HEAD(self) -> None:  # noqa: N802 - its parent asks for this name
        self.answer(with_body=False)

    def do_GET(self) -> None:  # noqa: N802
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        match = RESOLVE.fullmatch(self.path)
        if match is None:
            self.refuse(HTTPStatus.NOT_FOUND)
            return
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        request = Request(method=self.command, token=token, range=self.headers["Range"], **match.groupdict())
        self.hub.requests.append(request)
        repository = self.hub.repositories.get(request.repository)
        if self.hub.status is not None:
            self.refuse(self.hub.status)
        elif repository is None or (repository.token not in (None, token) and not repository.gated):
            self.refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        elif repository.token not in (None, token):
            self.refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
        elif request.revision not in repository.revisions:
            self.refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        elif request.name not in repository.files:
            self.refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", repository.revisions[request.revision])
        elif with_body and self.hub.breaks_after is not None and request.range:
            self.refuse(HTTPStatus.FORBIDDEN)
        else:
            self.send(request, repository, with_body)

    def refuse(self, status: int, code: str | None = None, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_headers({"X-Error-Code": code, "X-Repo-Commit": commit, "Content-Length": "0"})

    def send_headers(self, headers: dict[str, str | None]) -> None:
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def send(self, request: Request, repository: Repository, with_body: bool) -> None:
        content = repository.files[request.name]
        headers: dict[str, str | None] = {"X-Repo-Commit": repository.revisions[request.revision]}
        if request.name.endswith(LARGE):
            headers["X-Linked-Etag"] = headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        else:
            blob = b"blob %d\0" % len(content) + content
            headers["ETag"] = f'"{hashlib.sha1(blob).hexdigest()}"'
        body = self.hub.replaced.get(request.name, content)
        start = int(request.range.removeprefix("bytes=").split("-")[0]) if request.range else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        headers["Content-Length"] = str(len(body) - start)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK)
        self.send_headers(headers)
        if with_body:
            self.send_body(body[start:])

    def send_body(self, body: bytes) -> None:
        self.wfile.write(body[: self.hub.breaks_after])
        if self.hub.breaks_after is not None and self.hub.breaks_after < len(body):
            self.wfile.flush()
            if self.hub.hangs:
                self.hub.hanging.set()
                self.hub.released.wait()
            self.close_connection = True
