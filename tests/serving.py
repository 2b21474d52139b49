"""A server of files, of which parts can be asked for, and that fails as often as a test wants."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


class Files(SimpleHTTPRequestHandler):
    """Serves parts of files, fails as often as it is told to, and counts."""

    folder = ""
    failures = 0
    requests: ClassVar[Counter[str]] = Counter()

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=self.folder)

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        Files.requests[self.path] += 1
        if Files.failures > 0:
            Files.failures -= 1
            return self.send_error(503)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        end = int(wanted[2]) + 1 if wanted and wanted[2] else len(content)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content[start:end])))
        self.end_headers()
        self.wfile.write(content[start:end])
        return None


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Give the address of a server of a folder."""
    Files.folder, Files.failures = str(folder), 0
    Files.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
