"""One page: plain HTML with its pictures inside, readable on a phone, without scripts and without a network."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
from matplotlib.figure import Figure
from PIL import Image

from groupwise.explain.drawing import svg_text
from groupwise.frameworks import FRAMEWORKS
from groupwise.report.html_page import framed, literal, table
from groupwise.writing import replace_file, write_text

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, eq=False)
class Page:
    """A page.

    Attributes:
        topic: the file's name without `.html`.
        title: the question that it answers.
        text: its HTML, pictures and all.
        figures: the pictures, by name.
    """

    topic: str
    title: str
    text: str
    figures: Mapping[str, Figure]


def build(topic: str, name: str | None, values: Mapping[str, Any], figures: Mapping[str, Figure]) -> Page:
    """Return a topic's page: its text with values and pictures in it, without the sections on {name} if there is none.

    Args:
        topic: whose text is `page_TOPIC.html`.
        name: of the example.
        values: the text's, as HTML where they are texts: `literal` makes somebody's text that.
        figures: by the names that stand for them in the text.
    """
    sections = (_FOLDER / f"page_{topic}.html").read_text(encoding="utf-8").split("\n<section>")
    kept = "\n<section>".join(section for section in sections if name or "{name}" not in section)
    drawings = {figure_name: svg_text(figure, figure_name) for figure_name, figure in figures.items()}
    body = kept.format(name=name, **values, **drawings)
    title = re.findall("<h1>(.+)</h1>", body)[0]
    return Page(topic, title, framed(title, body, source_line(topic, name)), figures)


def source_line(topic: str, name: str | None) -> str:
    """Return the line that names the framework and the command."""
    backend = FRAMEWORKS[keras.backend.backend()].title
    command = f"groupwise explain {topic}{f' {literal(name)}' if name else ''} --output FOLDER"
    return f"Every number and line here was computed when the page was made, by {backend}: <code>{command}</code>."


def comparison(caption: str, columns: Mapping[str, Mapping[str, object]]) -> str:
    """Return the HTML of a table of which each column holds the same things of another one."""
    rows = next(iter(columns.values()))
    return table(caption, ("", *columns), ((row, *(column[row] for column in columns.values())) for row in rows))


def save_page(page: Page, folder: Path) -> list[Path]:
    """Write the page and its pictures into a folder; return their paths, the page's first."""
    paths = [folder / f"{page.topic}.html"]
    write_text(paths[0], page.text)
    for name, figure in page.figures.items():
        paths.append(folder / f"{name}.png")
        replace_file(paths[-1], partial(_save_png, figure))
    return paths


def _save_png(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 256 colours, which is all that these drawings need: a third of the size."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    image = Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, format="PNG", optimize=True)
