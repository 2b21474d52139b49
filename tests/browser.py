"""A page in a real browser, as wide as a phone: what it logs, how wide it is, and what it looks like."""

import html
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

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
    """A page on a phone: its width with all that sticks out, its drawings' widths, its console, its picture."""

    width: int
    drawings: list[int]
    console: list[str]
    picture: Image.Image


def find_browser() -> str:
    """Return the path of an installed Chromium or Chrome; skip the test where there is none."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser to look at pages with: none of {', '.join(NAMES)} is installed")
    return found


def look(page: Path, folder: Path) -> Seen:
    """Open a page in a frame of a phone's width; `folder`, an empty one, holds the browser's own files."""
    frame, picture = folder / "frame.html", folder / "screen.png"
    text = html.escape(page.read_text(encoding="utf-8"))
    frame.write_text(FRAME.format(width=PHONE, height=HEIGHT, page=text), encoding="utf-8")
    places = [f"--user-data-dir={folder / 'profile'}", f"--window-size=600,{HEIGHT}", f"--screenshot={picture}"]
    command = [find_browser(), *FLAGS, *places, frame.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    title = re.search(r"<title>([\d ]+)</title>", run.stdout)
    assert title, f"the browser did not load {page.name}: {run.stderr[-2000:]}"
    width, *drawings = map(int, title[1].split())
    console = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
    with Image.open(picture) as image:
        return Seen(width, drawings, console, image.convert("RGB").crop((0, 0, PHONE, HEIGHT)))
