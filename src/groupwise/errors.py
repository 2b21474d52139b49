"""The one kind of error that a user, not a programmer, causes, and how its sentences name an argument."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

Words: TypeAlias = Callable[[str, object], str]


class UserError(ValueError):
    """Bad input: its text is a clear sentence, shown as it is."""


def _as_in_python(name: str, value: object) -> str:
    return name if value is None else f"{name}={value}"


_words: ContextVar[Words] = ContextVar("words", default=_as_in_python)


def argument(name: str, value: object = None) -> str:
    """Return how a sentence names an argument, with a value or, for None, without.

    That is Python's way, unless whoever shows the sentences to a user has other words: `naming`.

    Examples:
        >>> argument("epochs", 3), argument("weights")
        ('epochs=3', 'weights')
    """
    return _words.get()(name, value)


@contextmanager
def naming(words: Words) -> Iterator[None]:
    """While it is entered, let sentences name arguments as `words` does, which takes what `argument` takes.

    Examples:
        >>> with naming(lambda name, value: f"the {name}"):
        ...     argument("weights", "run")
        'the weights'
    """
    before = _words.set(words)
    try:
        yield
    finally:
        _words.reset(before)


def check_installed(package: str, use: str) -> None:
    """Raise UserError where a package that the extra `cli` brings is not installed.

    Examples:
        >>> check_installed("json", "a notebook")
        >>> check_installed("not_there", "a notebook")
        Traceback (most recent call last):
            ...
        groupwise.errors.UserError: a notebook needs not_there, which is not installed: pip install "groupwise[cli]"
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f'{use} needs {package}, which is not installed: pip install "groupwise[cli]"')


def first_line(error: Exception) -> str:
    """Return the first line of what an error says; its class where it says nothing.

    Examples:
        >>> first_line(ValueError("no")), first_line(KeyError())
        ('no', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "resource_exhausted",
    "oom when allocating",
    "size calculation overflowed",
)


def lacks_memory(error: Exception) -> bool:
    """Return whether an error says that there is not memory enough, in Python's, NumPy's or a framework's words.

    Examples:
        >>> lacks_memory(MemoryError()), lacks_memory(ValueError("no"))
        (True, False)
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OF_MEMORY)
