"""`groupwise shard`: a data set as tar files that WebDataset reads."""

from typing import Annotated

import typer

from groupwise.cli.console import make_console, note, print_lines
from groupwise.cli.outputs import output_folder


def shard(
    data: Annotated[str, typer.Argument(help="As for `groupwise train`.")],
    output: Annotated[str, typer.Option(metavar="FOLDER", help="The folder to write to.")],
    size: Annotated[float, typer.Option(min=1, metavar="MB", help="Megabytes of a shard, about.")] = 256,
) -> None:
    """Write a data set as shards: tar files of images and labels, for many machines and for addresses such as s3://.

    Files stay as they are; splits stay splits. `groupwise train` reads them from a folder, by a pattern
    ("shards/train-{000000..000127}.tar") or an address.

    Example: groupwise shard photos/ --output shards/
    """
    folder = output_folder(output)
    from groupwise.data import load_dataset, write_shards

    dataset = load_dataset(data, test_fraction=1)  # it is written undivided, be it too small to be divided
    for text in dataset.notes:
        note(text)
    paths = write_shards(dataset, folder, size)
    total = sum(path.stat().st_size for path in paths)
    lines = {"shards": f"{len(paths)}, {total / 1e6:,.1f} MB", "output": str(folder)}
    print_lines(make_console(), lines)
