"""What a user names as a source of weights, and the file that it means."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from groupwise.errors import UserError
from groupwise.weights.hub import fetch
from groupwise.weights.reading import KINDS
from groupwise.writing import expanded

HUB, PACKAGE = "hf:", "package:"


def is_source(text: str) -> bool:
    """Return whether a text names published weights: a hub's, a package's, or a file with one of their endings."""
    return text.startswith((HUB, PACKAGE)) or text.lower().endswith(tuple(KINDS))


def locate(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that a source means, and what its publisher says of it (timm's `config.json`; else nothing).

    Args:
        source: a path; "hf:OWNER/NAME" or "hf:OWNER/NAME@REVISION", of the Hugging Face hub; "package:NAME", the one
            weight file that an installed Python package carries, or "package:NAME/PATH" where it carries several.

    Raises:
        UserError: there is no such file, or it cannot be had.
    """
    text = str(source)
    if text.startswith(HUB):
        return fetch(text.removeprefix(HUB))
    if text.startswith(PACKAGE):
        return _in_package(text.removeprefix(PACKAGE)), {}
    path = expanded(source)
    if not path.exists():
        raise UserError(
            f"{source} does not exist: name a file of weights ({', '.join(KINDS)}), hf:OWNER/NAME for the Hugging "
            "Face hub, or package:NAME for an installed Python package"
        )
    return path, _config_beside(path)


def _in_package(reference: str) -> Path:
    """Return a weight file below an installed package, which is looked up, not imported: importing runs its code."""
    name, _, inner = reference.partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{PACKAGE}{reference}: there is no installed package {name!r}; pip install it")
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(path for path in folder.rglob("*") if is_source(path.name))
    if inner:
        found = [path for path in found if path.relative_to(folder).as_posix() == inner]
    if len(found) != 1:
        names = ", ".join(path.relative_to(folder).as_posix() for path in found)
        several = f"carries several: name one of {names}, as {PACKAGE}{name}/PATH"
        raise UserError(f"{PACKAGE}{reference}: the package {several if found else 'carries no such weight file'}")
    return found[0]


def _config_beside(path: Path) -> dict[str, Any]:
    """Return timm's `config.json` that lies beside a file, as a download of its whole repository leaves it."""
    try:
        config = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) and "pretrained_cfg" in config else {}
