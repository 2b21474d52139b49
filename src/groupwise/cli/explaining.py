"""`groupwise explain`: pages and pictures of what grouped convolutions, forms, shuffles and separable ones compute."""

from typing import Annotated

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import make_console, print_lines
from groupwise.cli.options import Backend
from groupwise.cli.outputs import output_folder
from groupwise.explain import TOPICS, check_topic


def explain(
    topic: Annotated[
        str, typer.Argument(metavar="TOPIC", help="; ".join(f"{name}: {what}" for name, what in TOPICS.items()) + ".")
    ],
    output: Annotated[str, typer.Option(help="The folder for the page and its pictures.", metavar="FOLDER")],
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A network's name; for separable also a .keras file.", show_default=False),
    ] = None,
    backend: Backend = None,
) -> None:
    """Write a page that explains a topic, and its pictures as PNG files, from what the operations really compute.

    Examples: groupwise explain shuffle --output pages

    groupwise explain forms seresnext50_32x4d --output pages
    """
    from groupwise.explain import write

    check_topic(topic)
    folder = output_folder(output)
    settle_backend(backend)
    page, *pictures = write(topic, folder, name)
    print_lines(make_console(), {"page": str(page), "pictures": " ".join(str(path) for path in pictures)})
