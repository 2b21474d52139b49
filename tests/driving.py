"""A page in a browser that is told what to do: files chosen and dropped, clicks, and what is to be seen then.

Chromium is spoken to through two pipes, in the words of its DevTools, so that nothing more than it is needed.
"""

import base64
import io
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from PIL import Image

from tests.browser import FLAGS, find_browser

PATIENCE = 60  # seconds


class Driven:
    """A page that is open in a browser.

    Attributes:
        complaints: what the browser logged: errors of the script, and what the page's policy forbade.
        addresses: all that was asked for on the page's behalf.
    """

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers = commands, answers
        self._count = 0
        self._session: str | None = None
        self._pending = b""
        self.complaints: list[str] = []
        self.addresses: list[str] = []

    def open(self, address: str) -> None:
        """Open an address, and wait until it is there."""
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.tell(f"{domain}.enable")
        self.tell("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one of DevTools' commands and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            said = self._next()
            if said.get("id") == self._count:
                assert "result" in said, said
                return dict(said["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            more = os.read(self._answers.fileno(), 1 << 16)
            assert more, "the browser ended"
            self._pending += more
        message, self._pending = self._pending.split(b"\0", 1)
        said = dict(json.loads(message))
        parameters = said.get("params", {})
        if said.get("method") == "Network.requestWillBeSent":
            self.addresses.append(parameters["request"]["url"])
        elif said.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        elif said.get("method") == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        return said

    def value(self, expression: str) -> Any:
        """Return what an expression of JavaScript is on the page."""
        done = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.value(condition):
            assert time.monotonic() < end, f"never: {condition}; {self.complaints}"
            time.sleep(0.05)

    def choose(self, selector: str, paths: Sequence[Path]) -> None:
        """Choose files as somebody does who clicked on an input of files."""
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.tell("DOM.setFileInputFiles", nodeId=node, files=[str(path.absolute()) for path in paths])

    def drop(self, paths: Sequence[Path], x: int = 200, y: int = 200) -> None:
        """Drag files onto a place of the page, and let go."""
        data = {"items": [], "files": [str(path.absolute()) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tell("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def picture(self, width: int, dark: bool = False) -> Image.Image:
        """Return what the whole page looks like in a window of so many pixels."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        time.sleep(0.6)  # what moves, rests
        shot = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        return Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")


@contextmanager
def driven(folder: Path) -> Iterator[Driven]:
    """Start a browser whose own files lie in an empty folder; skip the test where there is none."""
    flags = [flag for flag in FLAGS if flag != "--dump-dom"]
    command = [find_browser(), *flags, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    with subprocess.Popen(
        ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null', "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        page = Driven(process.stdin, process.stdout)
        try:
            yield page
            page.tell("Browser.close")
            process.wait(PATIENCE)
        finally:
            process.kill()
