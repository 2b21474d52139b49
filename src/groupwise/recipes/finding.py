"""Recipes by name, of those that come with the package, or by path."""

import tomllib
from pathlib import Path

from groupwise.errors import UserError
from groupwise.recipes.recipe import Recipe, recipe_of
from groupwise.texts import did_you_mean, nearest
from groupwise.writing import expanded

_FOLDER = Path(__file__).parent


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Return a recipe by its name, or from a path that ends in .toml.

    Raises:
        UserError: no such recipe (with the nearest name), or a file that is not one.

    Examples:
        >>> load_recipe("digits").model
        'mnist_cnn'
    """
    path = _path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not TOML: {error}") from error
    return recipe_of({"name": path.stem, **content})


def introduction(name: str) -> str:
    """Return the comment that a recipe's file opens with: its command, cost and result."""
    lines = []
    for line in _path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return "\n".join(lines)


def _path(name: str) -> Path:
    if name.endswith(".toml"):
        return expanded(name)
    names = list_recipes()
    if name not in names:
        hint = did_you_mean(nearest(name, names)) or f"there are {', '.join(names)}, and paths that end in .toml"
        raise UserError(f"recipe {name!r}: there is no such recipe; {hint}")
    return _FOLDER / f"{name}.toml"
