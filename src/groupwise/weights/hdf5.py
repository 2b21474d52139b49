"""HDF5 files whose numbers lie in them alone: links, storage in other files and sizes beyond it are refused."""

from pathlib import Path
from typing import Any

import h5py

from groupwise.errors import UserError

BOMB = 2**28  # bytes, from which on there must not be a hundred times as many as are stored
EXPANSION = 100


def check_hdf5(path: Path, file: Any) -> None:
    """Check all groups and datasets of an open file.

    Raises:
        UserError: numbers lie in other files, or are many more than are stored.
    """

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            refuse_links(path, item)
        elif isinstance(item, h5py.Dataset):
            refuse_elsewhere(path, name, item)
            if item.nbytes > max(BOMB, EXPANSION * item.id.get_storage_size()):
                raise UserError(f"{path}: refused, since its {name!r} would become {item.nbytes:,} bytes")

    refuse_links(path, file)
    file.visititems(visit)  # which itself follows hard links only, and each of them once


def refuse_links(path: Path, group: Any) -> None:
    """Raise UserError where a group leads to other places, or other files."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise UserError(f"{path}: refused, since its {name!r} is a link, which could lead to another file")


def refuse_elsewhere(path: Path, name: str, dataset: Any) -> None:
    """Raise UserError where the numbers of a dataset lie in other files."""
    if dataset.is_virtual or dataset.external:
        raise UserError(f"{path}: refused, since the numbers of its {name!r} lie in other files")
