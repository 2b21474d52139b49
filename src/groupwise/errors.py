"""The one kind of error that a user, not a programmer, causes, and how its sentences name arguments and functions."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

__all__ = ["UserError"]

Words: TypeAlias = Callable[[str, object], str]
Calls: TypeAlias = Callable[..., str]


class UserError(ValueError):
    """Bad input: its text is a clear sentence, shown as it is."""


def _as_in_python(name: str, value: object) -> str:
    return name if value is None else f"{name}={value}"


def _call_in_python(name: str, *given: str, **named: object) -> str:
    return f"`groupwise.{name}({', '.join([*given, *(f'{key}={value!r}' for key, value in named.items())])})`"


_words: ContextVar[Words] = ContextVar("words", default=_as_in_python)
_calls: ContextVar[Calls] = ContextVar("calls", default=_call_in_python)


def argument(name: str, value: object = None) -> str:
    """Return how a sentence names an argument, with a value or, for None, without.

    That is Python's way, unless whoever shows the sentences to a user has other words: `naming`.

    Examples:
        >>> argument("epochs", 3), argument("weights")
        ('epochs=3', 'weights')
    """
    return _words.get()(name, value)


def call(name: str, *given: str, **named: object) -> str:
    """Return how a sentence names one of the package's functions, called with what is given.

    That is Python's way, unless whoever shows the sentences to a user has other words: `naming`.

    Examples:
        >>> call("models.list_models"), call("models.create", "NAME", weights="a.pth")
        ('`groupwise.models.list_models()`', "`groupwise.models.create(NAME, weights='a.pth')`")
    """
    return _calls.get()(name, *given, **named)


@contextmanager
def naming(words: Words, calls: Calls = _call_in_python) -> Iterator[None]:
    """While it is entered, let sentences name arguments and functions in other words.

    Args:
        words: of an argument: takes what `argument` takes.
        calls: of a function: takes what `call` takes.

    Examples:
        >>> with naming(lambda name, value: f"the {name}"):
        ...     argument("weights", "run")
        'the weights'
    """
    before, calls_before = _words.set(words), _calls.set(calls)
    try:
        yield
    finally:
        _words.reset(before)
        _calls.reset(calls_before)


def check_installed(package: str, use: str, extra: str = "cli") -> None:
    """Raise UserError where a package that an extra brings is not installed.

    Examples:
        >>> check_installed("json", "a notebook")
        >>> check_installed("not_there", "a notebook")
        Traceback (most recent call last):
            ...
        groupwise.errors.UserError: a notebook needs not_there, which is not installed: pip install "groupwise[cli]"
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f'{use} needs {package}, which is not installed: pip install "groupwise[{extra}]"')


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
