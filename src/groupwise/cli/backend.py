"""Which framework Keras runs on: settled before Keras is imported."""

import importlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

from groupwise.cli.compilation_cache import keep_compiled
from groupwise.errors import UserError
from groupwise.frameworks import FRAMEWORKS


def settle_backend(option: str | None = None) -> str:
    """Choose the backend, tell Keras by KERAS_BACKEND, and return its name.

    The choice: the option, else KERAS_BACKEND, else keras.json, else the first one installed.

    Raises:
        UserError: an unknown name, or what is chosen (or everything) is not installed.
    """
    installed = [name for name in FRAMEWORKS if importlib.util.find_spec(name) is not None]
    if not installed:
        extras = ", ".join(f'pip install "groupwise[{name}]"' for name in FRAMEWORKS)
        raise UserError(f"no backend is installed; install one of them: {extras}")
    name, origin = _chosen(option) or (installed[0], "the first one installed")
    if name not in FRAMEWORKS:
        raise UserError(f"backend {name!r} ({origin}): must be one of {', '.join(FRAMEWORKS)}")
    if name not in installed:
        raise UserError(
            f'backend {name!r} ({origin}) is not installed: pip install "groupwise[{name}]", '
            f"or choose another with --backend {installed[0]}"
        )
    os.environ["KERAS_BACKEND"] = name
    for variable, value in FRAMEWORKS[name].environment.items():
        os.environ.setdefault(variable, value)
    if name == "jax":
        keep_compiled()
    if name == "tensorflow":
        _import_tensorflow_quietly()
    return name


def _chosen(option: str | None) -> tuple[str, str] | None:
    """Return the backend asked for and where that is said."""
    if option:
        return option, "--backend"
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"], "KERAS_BACKEND"
    path = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):  # Keras ignores such a file too
        return None
    # Keras writes this file itself at its first start, naming TensorFlow whether it is there or not.
    if name == "tensorflow" and importlib.util.find_spec(name) is None:
        return None
    return (name, str(path)) if name else None


def _import_tensorflow_quietly() -> None:
    """Import TensorFlow without what its C++ says at every start.

    It writes to the process's standard error, which Python's sys.stderr knows nothing of, and TF_CPP_MIN_LOG_LEVEL
    does not silence all of it.
    """
    if "tensorflow" in sys.modules:
        return
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            importlib.import_module("tensorflow")
        except ImportError as error:
            raise UserError(f"backend 'tensorflow' cannot be imported: {error}") from error
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
