"""A page in a real browser, as wide as a phone: what it logs, how wide it is, and what it looks like."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, HEIGHT = 390, 3000

# Chromium's windows are at least 500 pixels wide; a frame inside one is as narrow as it is told to be.
FRAME = """<!doctype html><title>waiting</title><body style="margin: 0">
<iframe width="{width}" height="{height}" style="border: 0" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument;
  const drawings = [...page.querySelectorAll("svg")].map(drawing => Math.round(drawing.getBoundingClientRect().width));
  document.body.dataset.answer = JSON.stringify({ask});
  document.title = [page.documentElement.scrollWidth, ...drawings].join(" ");
}});
</script>"""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]


@dataclass(frozen=True, eq=False)
class Seen:
    """A page on a phone: its width with all that sticks out, its drawings' widths, its console, its picture.

    And what was asked of it.
    """

    width: int
    drawings: list[int]
    console: list[str]
    picture: Image.Image
    answer: Any


def find_browser() -> str:
    """Return the path of an installed Chromium or Chrome; skip the test where there is none."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser to look at pages with: none of {', '.join(NAMES)} is installed")
    return found


def look(page: Path, folder: Path, ask: str = "null") -> Seen:
    """Open a page in a frame of a phone's width, and ask it something.

    Args:
        page: its file.
        folder: an empty one, for the browser's own files.
        ask: an expression of JavaScript, in which `page` is the document; it is evaluated when all is loaded.
    """
    frame, picture = folder / "frame.html", folder / "screen.png"
    text = html.escape(page.read_text(encoding="utf-8"))
    frame.write_text(FRAME.format(width=PHONE, height=HEIGHT, page=text, ask=ask), encoding="utf-8")
    places = [f"--user-data-dir={folder / 'profile'}", f"--window-size=600,{HEIGHT}", f"--screenshot={picture}"]
    command = [find_browser(), *FLAGS, *places, frame.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    title = re.search(r"<title>([\d ]+)</title>", run.stdout)
    assert title, f"the browser did not load {page.name}: {run.stderr[-2000:]}"
    answer = re.search(r'data-answer="(.*?)"', run.stdout)
    assert answer, f"the browser could not be asked: {run.stderr[-2000:]}"
    width, *drawings = map(int, title[1].split())
    console = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
    with Image.open(picture) as image:
        return Seen(
            width,
            drawings,
            console,
            image.convert("RGB").crop((0, 0, PHONE, HEIGHT)),
            json.loads(html.unescape(answer[1])),
        )
