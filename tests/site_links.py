"""Check a built site: `python -m tests.site_links build/site` says which links lead nowhere, or out to the network.

Every link, picture, script and style sheet must be a file of the site, every anchor an element's id there.
"""

import argparse
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids.update(filter(None, (attributes.get("id"), attributes.get("name"))))
        is_loaded = tag in ("img", "script", "source") or "stylesheet" in (attributes.get("rel") or "")
        targets = self.loads if is_loaded else self.links
        targets.extend(filter(None, (attributes.get("href"), attributes.get("src"))))


@cache
def read(path: Path) -> _Page:
    """Return what stands in an HTML file."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def complaint(path: Path, target: str, is_loaded: bool) -> str | None:
    """Return what is wrong with a link of a page; None where nothing is."""
    parts = urlsplit(target)
    if parts.scheme in ("http", "https") or parts.netloc:
        return "is loaded from the network: the site must work without" if is_loaded else None
    if parts.scheme:
        return None
    file = path.parent / unquote(parts.path) if parts.path else path
    if not file.is_file():
        return "is no file of the site"
    if parts.fragment and file.suffix == ".html" and unquote(parts.fragment) not in read(file.resolve()).ids:
        return "is no anchor of that page"
    return None


def main() -> int:
    """Print a line for each link that leads nowhere; return 1 where there is one."""
    parser = argparse.ArgumentParser(prog="python -m tests.site_links", description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site.resolve()
    pages = sorted(site.rglob("*.html"))
    checked = wrong = 0
    for path in pages:
        page = read(path)
        for targets, is_loaded in ((page.links, False), (page.loads, True)):
            for target in dict.fromkeys(targets):
                checked += 1
                why = complaint(path, target, is_loaded)
                if why:
                    wrong += 1
                    print(f"{path.relative_to(site)}: {target} {why}")
    print(f"{len(pages)} pages, {checked} links, {wrong} of them wrong")
    return 1 if wrong or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
