"""Files written whole or not at all, where they can be written, and by one process at a time."""

import errno
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from groupwise.errors import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PARTIAL = ".partial-"
"""How the names of unfinished files begin."""


def expanded(path: str | Path) -> Path:
    """Return a path with `~` as the user's folder; a name such as ~backup.keras, of no user, stays as it is.

    Examples:
        >>> expanded("~no-such-user.keras").name
        '~no-such-user.keras'
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path's own raises there


@contextmanager
def writing(name: str | Path) -> Iterator[None]:
    """Say in a sentence that what has this name cannot be written: raise UserError in place of OSError."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).strip() or type(error).__name__
        raise UserError(f"{name} cannot be written: {reason.splitlines()[0].lower()}") from error


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file under another name, with the same ending, and give it its name when it is whole.

    Raises:
        UserError: it cannot be written; what was there before is as it was.
    """
    target = Path(os.path.realpath(path))  # a link stays one
    # The name is no other process's, and short wherever the file's own is as long as names may be.
    partial = target.with_name(f"{PARTIAL}{secrets.token_hex(4)}{target.suffix}")
    try:
        with writing(path):
            write(partial)
            _sync(partial)
            os.replace(partial, target)  # noqa: PTH105 - Path.replace says the same, os.replace that it is atomic
            _sync(target.parent)
    finally:
        with suppress(OSError):  # it is in its place, or what went wrong before is what counts
            partial.unlink()


def _sync(path: Path) -> None:
    """Let a file's bytes, or a folder's names, be on the disk, whatever becomes of the machine."""
    if sys.platform == "win32":  # where no folder, and no file that is only read, can be
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text at once. Raises UserError as `replace_file`."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def check_file(path: Path, label: str = "") -> None:
    """Try whether a file can be made at a path, and leave nothing.

    Args:
        path: of the file; what is there would be replaced.
        label: what errors call it. Default: the output and its path.

    Raises:
        UserError: it cannot, there is no folder for it, or a folder has its name.
    """
    label = label or f"output {path}"
    if os.path.isdir(path):  # noqa: PTH112 - Path's own raises where a name is too long
        raise UserError(f"{label}: is a folder; name a file")
    if not os.path.isdir(path.parent):  # noqa: PTH112
        what = "is no folder" if os.path.lexists(path.parent) else "does not exist; make it first"
        raise UserError(f"{label}: there is no folder {path.parent}: it {what}")
    _try(label, Path(os.path.realpath(path)).parent, [path.name])


def check_folder(path: Path, label: str = "") -> None:
    """Try whether files can be made in a folder that is there or is to be made, and leave nothing.

    Args:
        path: of the folder.
        label: what errors call it. Default: the output and its path.

    Raises:
        UserError: they cannot, or a file has its name or that of a folder above it.
    """
    label = label or f"output {path}"
    whole = path.absolute()
    base = next(folder for folder in (whole, *whole.parents) if os.path.lexists(folder))
    if not base.is_dir():
        what = "is a file; name a folder" if base == whole else f"{base} is no folder"
        raise UserError(f"{label}: {what}")
    _try(label, base, whole.parts[len(base.parts) :])


def _try(name: str, folder: Path, parts: Sequence[str]) -> None:
    """Make a file without a name in a folder, and look whether the system takes the names of what is to come there."""
    with writing(name):
        for part in parts:
            with suppress(FileNotFoundError):  # a name that the system takes
                os.lstat(folder / part)
        with tempfile.TemporaryFile(dir=folder):
            pass


def make_folder(path: Path) -> list[Path]:
    """Make a folder, and those above it that are missing; return those that were made, the innermost first.

    Raises:
        UserError: it cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, as far as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock: a file that is removed afterwards, and that counts for nothing once its process has ended.

    Where the file system has no locks it is only a file.

    Raises:
        UserError: another one holds it, in the words of `busy`; or the file cannot be written.
    """
    file = _open_locked(path, busy)
    try:
        yield
    finally:
        if sys.platform == "win32":  # where an open file cannot be removed
            file.close()
        with suppress(OSError):  # whoever comes next locks the one that is left
            path.unlink()
        file.close()


def _open_locked(path: Path, busy: str) -> IO[str]:
    while True:
        with writing(path):
            file = path.open("a", encoding="utf-8")
        try:
            _lock(file.fileno())
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # noqa: PTH116 - beside fstat
                return file
        except BlockingIOError:
            file.close()
            raise UserError(busy) from None
        except FileNotFoundError:  # whoever held it removed it meanwhile
            pass
        file.close()


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(*error.args) from error
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # there are no locks on this file system
        pass
