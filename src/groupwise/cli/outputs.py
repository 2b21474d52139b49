"""Where a command may write: said in a sentence before its work, where it may not."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from groupwise.cli.options import option
from groupwise.errors import UserError
from groupwise.inference.run_folder import RunFolder
from groupwise.writing import check_file, check_folder, expanded, replace_file

if TYPE_CHECKING:
    import keras

OF_FILES = (".keras", ".png", ".html", ".json", ".csv")


def save_model(model: "keras.Model", path: Path) -> None:
    """Write a model's file, whole or not at all."""
    from groupwise.keras_private import without_tensorflow

    with without_tensorflow():
        replace_file(path, model.save)


def output_file(text: str, ending: str, source: str, name: str = "output") -> Path:
    """Return the path of a file to write, after trying that it can be written.

    Args:
        text: what follows the option.
        ending: that it must have, such as ".keras".
        source: the model that is read, or its run's folder; it is not to be overwritten.
        name: of the option.

    Raises:
        UserError: it cannot be written, or should not.
    """
    path = expanded(text)
    if path.suffix != ending:
        raise UserError(f"{option(name, text)}: must end in {ending}")
    given = expanded(source)  # it may be a package's name as well
    for read in (given, RunFolder(given).last):
        # os.path answers for a name too long for any file, too.
        if os.path.exists(read) and os.path.exists(path) and path.samefile(read):  # noqa: PTH110
            raise UserError(f"{option(name, text)}: is the model that is read, and would be gone; name another file")
    check_file(path, option(name, path))
    return path


def output_folder(text: str) -> Path:
    """Return the path of a folder to write to, after trying that files can be made there; it may not exist yet.

    Raises:
        UserError: they cannot.
    """
    path = expanded(text)
    if path.suffix.lower() in OF_FILES and not os.path.lexists(path):
        raise UserError(f"--output {text}: ends as a file does; name the folder to write to")
    check_folder(path, option("output", path))
    return path
