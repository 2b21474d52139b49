"""The pages that people read: README.md, what lies in docs/ and the other Markdown files of this checkout."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
SITE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*SITE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").rglob("*.md"))]

_FENCE = re.compile(
    r"(?P<before>[^\n]*)\n+^[ ]*```(?P<language>[^\n]*)\n(?P<text>.*?)^[ ]*```$", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_CODE = re.compile(r"(?<!`)`(?P<code>[^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        line: where it stands.
        before: the line above it, which may say "not run" and why.
        language: "python", "bash", ... or "".
        text: what it says.
    """

    line: int
    before: str
    language: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether it is meant to run where there is no network."""
        return "<!-- not run:" not in self.before


def name_of(page: Path) -> str:
    """Return a page's path within the checkout."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[Block]:
    """Return the blocks of a language, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start("text")), match["before"], match["language"], match["text"])
        for match in _FENCE.finditer("\n" + text)
        if match["language"] == language
    ]


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of a program in a page's shell blocks, such as "groupwise"."""
    for block in blocks(page, "bash"):
        for line in block.text.splitlines():
            for is_joint, words in groupby(shlex.split(line, comments=True), "&&".__eq__):
                name, *arguments = words
                if not is_joint and Path(name).name == program:
                    yield arguments


def prose(page: Path) -> str:
    """Return a page's text without its blocks."""
    return _FENCE.sub(r"\g<before>\n", "\n" + page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """Return what stands between single backticks."""
    return [match["code"] for match in _CODE.finditer(prose(page))]


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures that are no addresses."""
    targets = [match["target"] for match in _LINK.finditer(_CODE.sub("", prose(page)))]
    return [target for target in targets if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Return the names by which a page's headings are linked to, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
