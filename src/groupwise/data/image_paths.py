"""Which image files are meant by what the user names."""

import codecs
import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from groupwise.data.files import CAM_SUFFIX, files_in_folder, is_hidden
from groupwise.data.left_out import kinds, no_images
from groupwise.errors import UserError, argument
from groupwise.writing import expanded

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


def image_paths(
    names: Sequence[str], recursive: bool = False, on_note: Callable[[str], Any] = lambda text: None
) -> list[Path]:
    """Return the files that names, folders and patterns mean, in their order, a folder's sorted by path.

    Of a folder these are the images that training reads; of what else is in it `on_note` is told.

    Args:
        names: the user's.
        recursive: whether the folders below a folder are looked into.
        on_note: called with a sentence for each folder of which something is left out.

    Raises:
        UserError: a folder holds no image, or a file does not exist.
    """
    return [path for name in names for path in _paths(name, recursive, on_note)]


def listed_names(content: bytes) -> list[str]:
    r"""Return the names that a list holds: one a line or, as `find -print0` writes them, with a NUL after each.

    Examples:
        >>> listed_names(b"a.png\r\nb c.png\n\n"), listed_names(b"a.png\0b\nc.png\0")
        (['a.png', 'b c.png'], ['a.png', 'b\nc.png'])
    """
    text = content.removeprefix(codecs.BOM_UTF8)
    names = text.split(b"\0") if b"\0" in text else (line.removesuffix(b"\r") for line in text.split(b"\n"))
    return [os.fsdecode(name) for name in names if name.strip()]


def _paths(name: str, recursive: bool, on_note: Callable[[str], Any]) -> list[Path]:
    path = expanded(name)
    if path.is_dir():
        return _in_folder(name, path, recursive, on_note)
    if name.lower().endswith(ARCHIVES) and path.is_file():
        raise UserError(f"{name} is an archive: unpack it, and name the folder")
    if path.exists() or path.is_symlink():
        return [path]
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - of any root
    found = sorted(match for match in matches if not match.is_dir() and not _is_left_out(match.name))
    if found:
        return found
    if matches:
        raise UserError(f"{name} matches folders, or files that systems leave behind, and no image")
    raise UserError(f"{name} does not exist" if not glob.has_magic(name) else f"{name}: no file has such a name")


def _in_folder(name: str, folder: Path, recursive: bool, on_note: Callable[[str], Any]) -> list[Path]:
    files = files_in_folder(folder, recursive)
    left_out = [file for file in files.left_out if not _is_left_out(file)]
    deeper = [] if recursive else [it for it in folder.iterdir() if it.is_dir() and not is_hidden(it.name)]
    count = "1 folder" if len(deeper) == 1 else f"{len(deeper)} folders"
    if not files.names and deeper and not left_out:
        add = f"add {argument('recursive', True)}"
        raise UserError(f"{name} holds no images itself, but {count}: {add} to look into what is below")
    if not files.names:
        raise no_images(name, left_out)
    if left_out:
        on_note(f"{name}: left out, since they cannot be read: {kinds(left_out)}")
    if deeper:
        on_note(f"{name}: {count} in it left out: add {argument('recursive', True)} to look into them")
    return [folder / file for file in files.names]


def _is_left_out(name: str) -> bool:
    """Return whether a file is left out without a word."""
    return is_hidden(name) or name.endswith(CAM_SUFFIX)
