"""`groupwise report`: all that is known of runs, each on one page, and several side by side."""

from typing import Annotated

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import make_console, print_lines
from groupwise.cli.options import Backend
from groupwise.cli.outputs import output_folder


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    output: Annotated[str, typer.Option(help="The folder for the pages.", metavar="FOLDER")],
    doubles: Annotated[
        bool,
        typer.Option(
            "--doubles/--no-doubles",
            help="Whether to look for test images that look like training images, for which all of them are read.",
        ),
    ] = True,
    backend: Backend = None,
) -> None:
    """Write all that is known of a run on one page; of several runs also index.html, which has them side by side.

    The last model is tested anew on the data that the run names. Where they are gone, the page says so.

    Examples: groupwise report runs/photos --output pages

    groupwise report runs/* --output pages --no-doubles
    """
    folder = output_folder(output)
    settle_backend(backend)
    from groupwise.report import write_reports

    with make_console(stderr=True).status("looking at the runs") as status:

        def show(name: str, done: int, total: int) -> None:
            status.update(f"{name}: looking for doubles, {done:,} of {total:,} images")

        pages = write_reports(runs, folder, doubles, show)
    if len(runs) == 1:
        print_lines(make_console(), {"page": str(pages[0])})
    else:
        print_lines(make_console(), {"index": str(pages[0]), "pages": " ".join(map(str, pages[1:]))})
