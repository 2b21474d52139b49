"""Data sets that a file lists: CSV or JSON lines of paths and labels."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from groupwise.data.classes import normal_form
from groupwise.data.dataset import Dataset, SplitRule
from groupwise.data.files import ImageFiles
from groupwise.data.folders import dataset_of_entries
from groupwise.data.images import read_file
from groupwise.data.layout import ROLES, Folders
from groupwise.errors import UserError
from groupwise.texts import quoted

SEPARATORS = {".csv": ",", ".tsv": "\t"}
LINES_OF_JSON = (".jsonl", ".ndjson")
# The words that columns go by.
PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABELS = ("label", "class", "category", "target", "class_name", "label_name")
SPLITS = ("split", "set", "subset", "partition")


def is_list(path: Path) -> bool:
    """Return whether a file is a list, by its ending."""
    return path.suffix.lower() in (*SEPARATORS, *LINES_OF_JSON)


def dataset_of_list(path: Path, rule: SplitRule) -> Dataset:
    """Return the data set that a file lists.

    Args:
        path: of the list. CSV has a header that names the columns of paths and labels, and perhaps splits, or paths and
            labels as its first two columns; each line of JSON has the same names. Paths are below the list's folder.
        rule: divides the images where no split says which are tested on.

    Raises:
        UserError: it is no such list, or lists images of one class only.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            by_role = _by_role(path, _rows_of_json(file, path) if _is_json(path) else _rows_of_csv(file, path))
    except (UnicodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable list ({error})") from error
    return dataset_of_entries(path.name, by_role, files_below(path.parent), rule)


def files_below(folder: Path) -> ImageFiles:
    """Return what reads any file by its path below a folder."""

    def size(name: str) -> int:
        try:
            return (folder / name).stat().st_size
        except OSError:
            return 0

    return ImageFiles([], lambda name: read_file(folder / name, name), size, [], [])


def _is_json(path: Path) -> bool:
    return path.suffix.lower() in LINES_OF_JSON


def _by_role(path: Path, rows: Iterable[tuple[str, str, str]]) -> Folders:
    by_role: Folders = defaultdict(list)
    for file, label, split in rows:
        role = ROLES.get(normal_form(split))
        if role is None:
            raise UserError(f"{path}: {quoted(split)} is no split: train, validation and test are")
        by_role["test" if role == "evaluation" else role].append(((label, *PurePosixPath(file).parts), file))
    return by_role


def _rows_of_csv(lines: Iterable[str], path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the path, the label and the split of each row."""
    rows: Iterator[list[str]] = csv.reader(lines, delimiter=SEPARATORS[path.suffix.lower()])
    header = next(rows, [])
    names = [normal_form(name.strip()) for name in header]
    if len(header) < 2:
        raise UserError(f"{path} does not begin with a path and a label")
    if not set(names).intersection(PATHS):
        names, rows = ["path", "label"], iter([header, *rows])
    for number, row in enumerate(rows, 1):
        if row:
            yield _row(dict(zip(names, row, strict=False)), f"{path}: row {number}")


def _rows_of_json(lines: Iterable[str], path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            content = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place} is no JSON ({error})") from error
        if not isinstance(content, dict):
            raise UserError(f"{place} is no object with a path and a label")
        yield _row({normal_form(name): str(value) for name, value in content.items()}, place)


def _row(row: Mapping[str, str], place: str) -> tuple[str, str, str]:
    file, label, split = (next((row[name] for name in names if row.get(name)), "") for names in (PATHS, LABELS, SPLITS))
    if not file or not label:
        lacking, names = ("path", PATHS) if not file else ("label", LABELS)
        raise UserError(f"{place} has no {lacking}, by none of the names {', '.join(names)}")
    return file.strip(), label.strip(), split.strip() or "train"
