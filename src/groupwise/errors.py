"""The one kind of error that a user, not a programmer, causes."""


class UserError(ValueError):
    """Bad input to the command: its text is a clear sentence, shown as it is, and the exit code is 2."""


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
