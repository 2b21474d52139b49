"""One page: plain HTML with its pictures inside, readable on a phone, without scripts and without a network."""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from groupwise.explain.drawing import svg_text
from groupwise.files import replace_file, write_text


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawing: its file's name without `.png`, what it shows in words, and the line below it."""

    name: str
    figure: Figure
    alternative: str
    caption: str


@dataclass(frozen=True)
class Row:
    """Pictures side by side where there is room, one below the other on a phone."""

    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Table:
    """Texts in columns; wider than a phone it scrolls in its own box. Columns after the first are numbers."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Lines of a program."""

    text: str


Content = str | Picture | Row | Table | Code


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a text is a paragraph, with `code` and [links](https://...) in it."""

    heading: str
    contents: tuple[Content, ...]


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        topic: the file's name without `.html`.
        title: the question.
        answer: its answer in plain words, a paragraph each; it stands first.
        sections: the rest.
        source: the last line: how the page was made.
    """

    topic: str
    title: str
    answer: tuple[str, ...]
    sections: tuple[Section, ...]
    source: str

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        contents = [content for section in self.sections for content in section.contents]
        rows = [content.pictures if isinstance(content, Row) else (content,) for content in contents]
        return [picture for row in rows for picture in row if isinstance(picture, Picture)]


def save_page(page: Page, folder: Path) -> list[Path]:
    """Write the page and its pictures into a folder; return their paths, the page's first."""
    paths = [folder / f"{page.topic}.html"]
    write_text(paths[0], render(page))
    for picture in page.pictures:
        paths.append(folder / f"{picture.name}.png")
        replace_file(paths[-1], partial(_save_png, picture.figure))
    return paths


def _save_png(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 256 colours, which is all that these drawings need: a third of the size."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    image = Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(path, format="PNG", optimize=True)


def render(page: Page) -> str:
    """Return the page's HTML."""
    answer = "\n".join(f"<p>{_inline(text)}</p>" for text in page.answer)
    sections = "\n".join(
        f"<section>\n<h2>{_inline(section.heading)}</h2>\n{''.join(map(_content, section.contents))}</section>"
        for section in page.sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(page.title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{html.escape(page.title)}</h1>
{answer}
</header>
{sections}
<footer><p>{_inline(page.source)}</p></footer>
</main>
</body>
</html>
"""


def _content(content: Content) -> str:
    if isinstance(content, str):
        return f"<p>{_inline(content)}</p>\n"
    if isinstance(content, Picture):
        return _picture(content)
    if isinstance(content, Row):
        return f'<div class="row">\n{"".join(map(_picture, content.pictures))}</div>\n'
    if isinstance(content, Code):
        return f'<pre tabindex="0"><code>{html.escape(content.text)}</code></pre>\n'
    return _table(content)


def _picture(picture: Picture) -> str:
    drawing = svg_text(picture.figure, picture.name)
    label = html.escape(picture.alternative)
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f"<figure>\n{drawing}\n<figcaption>{_inline(picture.caption)}</figcaption>\n</figure>\n"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_inline(text)}</th>' for text in table.head)
    rows = "\n".join(
        f'<tr><th scope="row">{_inline(row[0])}</th>{"".join(f"<td>{_inline(text)}</td>" for text in row[1:])}</tr>'
        for row in table.rows
    )
    # A box that scrolls must be reachable by keyboard, and then it needs a name.
    label = html.escape(re.sub(r"[`\[\]]", "", table.caption))
    return (
        f'<p class="caption">{_inline(table.caption)}</p>\n'
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n<table aria-label="{label}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>\n"
    )


def _inline(text: str) -> str:
    """Return text as HTML, `code` and [links](https://...) in it."""
    text = html.escape(text, quote=False)
    text = re.sub(r"\\([\\`\[\]])", lambda match: f"&#{ord(match[1])};", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\[([^\]]+)\]\((https://[^)\s]+)\)", r'<a href="\2">\1</a>', text)


STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --faint: #4b5563; --ground: #ffffff; --line: #d1d5db;
  --box: #f3f4f6; --link: #1d4ed8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --faint: #9ca3af; --ground: #111827; --line: #374151; --box: #1f2937; --link: #93c5fd; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 17px/1.55 system-ui, sans-serif; }
main { max-width: 44rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.2rem 0 0.6rem; }
header p:first-of-type { font-size: 1.1rem; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, monospace; font-size: 0.88em; }
code { background: var(--box); border-radius: 3px; padding: 0.05em 0.25em; }
pre { font-size: 0.85rem; background: var(--box); border-radius: 6px; padding: 0.8rem; overflow-x: auto;
  line-height: 1.45; }
pre code { padding: 0; background: none; font-size: 1em; }
figure { margin: 1.2rem 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 34rem; margin: 0 auto; background: #ffffff;
  border-radius: 6px; }
figcaption { color: var(--faint); font-size: 0.92rem; margin: 0.5rem auto 0; max-width: 34rem; }
.row { display: grid; gap: 1.2rem; }
.row figure { margin: 0; }
@media (min-width: 60rem) {
  .row { grid-template-columns: repeat(3, 1fr); width: 58rem; margin-left: calc(50% - 29rem); }
}
.scroll { overflow-x: auto; margin: 0 0 1.2rem; }
table { border-collapse: collapse; font-size: 0.92rem; }
.caption { color: var(--faint); font-size: 0.92rem; margin: 1.2rem 0 0.3rem; }
th, td { text-align: right; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; }
thead th { white-space: normal; vertical-align: bottom; }
@media (max-width: 30rem) { th, td { font-size: 0.8rem; padding: 0.3rem 0.3rem; } pre { font-size: 0.75rem; } }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); color: var(--faint); font-size: 0.9rem; }
"""
