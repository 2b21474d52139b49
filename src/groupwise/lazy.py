"""Public members that are imported at their first use.

The command must settle Keras's backend before Keras is imported, and a package should load no framework for what
nobody uses. A package lists these members twice: for type checkers and editors as imports under `TYPE_CHECKING`, else
through `members_at_use`; `tests/test_public.py` holds both lists to one another.
"""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def members_at_use(
    package: str, members: Mapping[str, str], modules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        package: its name.
        members: each with the module within the package that has it.
        modules: of the package, which are members themselves.
    """
    modules = frozenset(modules)

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name in members:
            return getattr(importlib.import_module(f"{package}.{members[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(__dir__())}")

    def __dir__() -> list[str]:  # noqa: N807
        return sorted(sys.modules[package].__all__)

    return __getattr__, __dir__
