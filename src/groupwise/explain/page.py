"""One page: plain HTML with its pictures inside, readable on a phone, without scripts and without a network."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import keras
from matplotlib.figure import Figure
from PIL import Image

from groupwise.explain.drawing import svg_text
from groupwise.frameworks import FRAMEWORKS
from groupwise.texts import printable
from groupwise.writing import replace_file, write_text

_TEMPLATE = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
_MARKS = re.escape(r"\`[]|")  # what is more than itself in a text
_PICTURE = re.compile(r"!\[(.+?)\]\((\w+)\) (.+?)(?= !\[|$)")


@dataclass(frozen=True, eq=False)
class Page:
    """A page.

    Attributes:
        topic: the file's name without `.html`.
        text: Markdown: `# ` and the question, its answer in plain words, sections below `## `. A paragraph has `code`
            and [links](https://...) in it. A picture is `![what it shows](name)` and the line below it; those of one
            paragraph stand side by side where there is room. Tables: `table`; programs stand between three backticks.
        figures: the pictures, by name.
        source: the last line: how the page was made.
    """

    topic: str
    text: str
    figures: Mapping[str, Figure]
    source: str

    @property
    def title(self) -> str:
        """The question."""
        return self.text.partition("\n")[0].removeprefix("# ")


def text_of(topic: str, name: str | None, values: Mapping[str, Any]) -> str:
    """Return a topic's text with its values in it; a section on {name} is left out where none is given."""
    sections = Path(__file__).with_name(f"page_{topic}.md").read_text(encoding="utf-8").split("\n## ")
    kept = (section for section in sections if name or "{name}" not in section)
    return "\n## ".join(kept).format(name=name, **values)


def source_line(topic: str, name: str | None) -> str:
    """Return the line that names the framework and the command."""
    backend = FRAMEWORKS[keras.backend.backend()].title
    command = f"groupwise explain {topic}{f' {literal(name)}' if name else ''}"
    return f"Every number and line here was computed when the page was made, by {backend}: `{command} --output FOLDER`."


def literal(text: str) -> str:
    r"""Return somebody's text for a page: what would be a mark in it is none.

    Examples:
        >>> print(literal("net[1].keras"))
        net\[1\].keras
    """
    return re.sub(f"([{_MARKS}])", r"\\\1", printable(text))


def rounding(difference: float) -> str:
    """Return a tiny difference as text.

    Examples:
        >>> rounding(0.0), rounding(2.4e-07)
        ('0', '2.4e-07')
    """
    return f"{difference:.1e}" if difference else "0"


def sizes(shape: Sequence[int | None]) -> str:
    """Return a shape as text.

    Examples:
        >>> sizes((3, 3, 4, 128))
        '3x3x4x128'
    """
    return "x".join(map(str, shape))


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table's Markdown; wider than a phone it scrolls in its own box. Columns after the first are numbers."""
    return "\n".join([caption, *(f"| {' | '.join(row)} |" for row in (head, *rows))])


def save_page(page: Page, folder: Path) -> list[Path]:
    """Write the page and its pictures into a folder; return their paths, the page's first."""
    paths = [folder / f"{page.topic}.html"]
    write_text(paths[0], render(page))
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


def render(page: Page) -> str:
    """Return the page's HTML."""
    header, *sections = (
        "".join(_block(block, page.figures) for block in re.findall(r"```\n.*?\n```|(?:[^\n]+\n?)+", part, re.DOTALL))
        for part in re.split(r"\n(?=## )", page.text)
    )
    return _TEMPLATE.substitute(
        title=html.escape(page.title),
        header=header,
        sections="\n".join(f"<section>\n{section}</section>" for section in sections),
        source=f"<p>{_inline(page.source)}</p>",
    )


def _block(block: str, figures: Mapping[str, Figure]) -> str:
    """Return the HTML of what stands between blank lines."""
    if block.startswith("```"):
        return f'<pre tabindex="0"><code>{html.escape(block[4:-4])}</code></pre>\n'
    if "\n|" in block:
        return _table(*block.splitlines())
    text = " ".join(block.splitlines())
    if found := _PICTURE.findall(text):
        pictures = "".join(_picture(figures[name], name, shown, caption) for shown, name, caption in found)
        return pictures if len(found) == 1 else f'<div class="row">\n{pictures}</div>\n'
    if heading := re.fullmatch("(#+) (.+)", text):
        level = len(heading[1])
        return f"<h{level}>{_inline(heading[2])}</h{level}>\n"
    return f"<p>{_inline(text)}</p>\n"


def _picture(figure: Figure, name: str, shown: str, caption: str) -> str:
    drawing = svg_text(figure, name).replace("<svg ", f'<svg role="img" aria-label="{html.escape(shown)}" ', 1)
    return f"<figure>\n{drawing}\n<figcaption>{_inline(caption)}</figcaption>\n</figure>\n"


def _table(caption: str, *lines: str) -> str:
    head, *rows = ([_inline(cell) for cell in line[2:-2].split(" | ")] for line in lines)
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    # A box that scrolls must be reachable by keyboard, and then it needs a name.
    label = html.escape(re.sub(r"[`\[\]]", "", caption))
    return (
        f'<p class="caption">{_inline(caption)}</p>\n'
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n<table aria-label="{label}">\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>\n"
    )


def _inline(text: str) -> str:
    """Return text as HTML, `code` and [links](https://...) in it."""
    text = html.escape(text, quote=False)
    text = re.sub(rf"\\([{_MARKS}])", lambda match: f"&#{ord(match[1])};", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\[([^\]]+)\]\((https://[^)\s]+)\)", r'<a href="\2">\1</a>', text)
