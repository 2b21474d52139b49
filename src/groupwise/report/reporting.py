"""Pages of runs: each looked at anew on its data, as far as these are there, and several side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from groupwise import __version__
from groupwise.data import load_dataset
from groupwise.errors import UserError, argument, first_line
from groupwise.inference.evaluation import evaluate
from groupwise.inference.matching import match_classes
from groupwise.inference.networks import load_network
from groupwise.inference.preprocessing import make_batches
from groupwise.inference.recorded import divide_for
from groupwise.report.index_page import index_page
from groupwise.report.looking import Look, look
from groupwise.report.run_page import run_page
from groupwise.report.runs import RunRecord, read_run
from groupwise.writing import expanded, make_folder, write_text

Progress: TypeAlias = Callable[[str, int, int], object]
"""Told which run is looked at, how many of its images have been hashed, and how many there are."""

INDEX, BATCH_SIZE = "index", 64
SOURCE = f"Made by groupwise {__version__}"


def write_page(path: Path, title: str, run: str | Path | None, seen: Look | None) -> None:
    """Write the page of a run, or of a network on other data.

    Args:
        path: of the HTML file, which is written whole or not at all.
        title: what the page is about.
        run: the folder; None where a network alone was looked at.
        seen: what `look` found; None where nobody looked.

    Raises:
        UserError: it is no run's folder, or the page cannot be written.

    Examples:
        >>> write_page(Path("page.html"), "digits", "runs/digits", None)  # doctest: +SKIP
    """
    record = None if run is None else read_run(run)
    lacks = ["The images were not looked at: groupwise report does that."] if seen is None else []
    write_text(path, run_page(title, record, seen, f"{SOURCE}.", lacks))


def write_reports(
    runs: Sequence[str | Path], folder: str | Path, doubles: bool = True, progress: Progress | None = None
) -> list[Path]:
    """Look at runs anew, on the data that they name, and write a page of each; of several, also `index.html`.

    Where the data or the model are not there, or not to be read, the page says so and shows what the folder holds.

    Args:
        runs: their folders.
        folder: for the pages, made where there is none.
        doubles: whether to look for images to test on that look like ones that were trained on, for which all are read.
        progress: told how far that is.

    Returns:
        The pages' paths, that of the index first where there is one.

    Raises:
        UserError: one is no run's folder, or a page cannot be written.

    Examples:
        >>> write_reports(["runs/a", "runs/b"], "pages")  # doctest: +SKIP
        [PosixPath('pages/index.html'), PosixPath('pages/a.html'), PosixPath('pages/b.html')]
    """
    records = [read_run(run) for run in runs]
    paths = {record.path.resolve(): record.name for record in records}
    if len(paths) < len(records):
        raise UserError(f"{argument('runs')}: one of the {len(records)} folders is named twice")
    folder = expanded(folder)
    make_folder(folder)
    names = _distinct([record.name for record in records])
    pages, looks = [], []
    for record, name in zip(records, names, strict=True):
        seen, lacks = _looked(record, doubles, progress)
        pages.append(folder / f"{name}.html")
        write_text(pages[-1], run_page(name, record, seen, f"{SOURCE} of {record.path}.", lacks))
        looks.append(seen)
    if len(records) == 1:
        return pages
    index = folder / f"{INDEX}.html"
    write_text(index, index_page(names, records, looks, f"{SOURCE}."))
    return [index, *pages]


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of files that are told apart, in lower case too, none of them the index's.

    Examples:
        >>> _distinct(["a", "A", "index"])
        ['a', 'A-2', 'index-2']
    """
    taken, found = {INDEX}, []
    for name in names:
        numbered = [name, *(f"{name}-{number}" for number in range(2, len(names) + 3))]
        found.append(next(one for one in numbered if one.lower() not in taken))
        taken.add(found[-1].lower())
    return found


def _looked(record: RunRecord, doubles: bool, progress: Progress | None) -> tuple[Look | None, list[str]]:
    """Return what a run's last model makes of its images to test on, and sentences on what lacks or may mislead."""
    try:
        dataset, notes = divide_for(load_dataset(str(record.plan.get("data", ""))), record.path)
        network = load_network(record.path)
        split, _ = match_classes(network, dataset)
        batches = make_batches(split, network, BATCH_SIZE)
        try:
            evaluation = evaluate(network, batches, folds=True)
        finally:
            batches.close()
    except UserError as error:
        return None, [f"The images were not looked at: {first_line(error)}."]
    told = None if progress is None else lambda done, total: progress(record.name, done, total)
    seen = look(network, split, evaluation, dataset.train if doubles else None, told)
    return seen, [f"{note}." for note in notes]
