"""Any saved Keras model, read with care."""

import zipfile
from pathlib import Path

import keras

from groupwise.errors import UserError
from groupwise.files import expanded


def load_model(path: Path) -> keras.Model:
    """Return any Keras model from its .keras file, without what it was compiled with.

    Raises:
        UserError: there is no such file, it is damaged, or would run a program of its own.
    """
    path = expanded(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a .keras file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is no .keras file, or a damaged one")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras raises nearly anything on a file that is not its own
        if "unsafe" in str(error):
            raise UserError(
                f"{path} is refused, since it holds a program (a Lambda layer), not only a model"
            ) from error
        raise UserError(f"{path} cannot be read as a Keras model: {str(error).strip().splitlines()[0]}") from error
