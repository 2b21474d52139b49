"""Pages that explain: `write(topic, folder)` draws what the operations here really compute."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from groupwise.errors import UserError, check_installed
from groupwise.writing import expanded, make_folder

if TYPE_CHECKING:
    from groupwise.explain.page import Page

__all__ = ["TOPICS", "check_topic", "make", "write"]

TOPICS = {
    "grouped": "how a grouped convolution is computed",
    "forms": "ResNeXt's three",
    "shuffle": "what the channel shuffle is for",
    "separable": "what a depth multiplier buys",
}
"""What each explains: its text is `page_TOPIC.html`, beside a module of this name that computes values and pictures."""


def check_topic(topic: str) -> None:
    """Raise UserError unless there is such a topic."""
    if topic not in TOPICS:
        raise UserError(f"topic {topic!r}: must be one of {', '.join(TOPICS)}")


def make(topic: str, name: str | None = None) -> "Page":
    """Return the page of a topic, its numbers computed by Keras's active framework.

    Args:
        topic: one of `TOPICS`.
        name: of a network (for "separable" also a .keras file) that stands as the example; None for the default.

    Raises:
        UserError: no such topic or network, the network has nothing to show of the topic, or Matplotlib is not there.

    Examples:
        >>> make("shuffle").title
        'What is channel shuffle for, and how do I write it?'
    """
    check_topic(topic)
    check_installed("matplotlib", "drawing")
    from groupwise.explain.page import build

    return build(topic, name, *importlib.import_module(f"{__name__}.page_{topic}").make(name))


def write(topic: str, folder: str | Path, name: str | None = None) -> list[Path]:
    """Write `folder/topic.html` and the same pictures as PNG files; return the paths, the page's first.

    Args:
        topic, name: as for `make`.
        folder: made where there is none.

    Raises:
        UserError: as `make`, or the folder or a file cannot be written.
    """
    page = make(topic, name)
    from groupwise.explain.page import save_page

    folder = expanded(folder)
    make_folder(folder)
    return save_page(page, folder)
