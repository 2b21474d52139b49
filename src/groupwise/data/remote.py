"""Files at addresses that fsspec knows, fetched again where that failed."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from groupwise.errors import UserError, check_installed, first_line
from groupwise.texts import quoted

Result = TypeVar("Result")

TRIES, PAUSE = 8, 0.5  # of what is fetched; seconds after the first failure, twice as long after each other: a minute
PIECE = 1 << 24  # bytes that are asked for at a time


def is_remote(address: str) -> bool:
    """Return whether this is an address, and no path."""
    return "://" in address


def file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it."""
    check_installed("fsspec", quoted(address), "shards")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be read: {first_line(error)}") from error
    return system, str(path)


def retried(fetch: Callable[[], Result], address: str) -> Result:
    """Return what a function fetches; where it fails it is called again, after pauses.

    Raises:
        UserError: it fails each time, or what it is to fetch is not there or not to be read.
    """
    for number in range(TRIES):
        try:
            return fetch()
        except UserError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            reason = "is not there" if isinstance(error, FileNotFoundError) else "may not be read"
            raise UserError(f"{address} {reason}") from error
        except Exception as error:  # of HTTP and cloud libraries, whichever is behind the address
            if number == TRIES - 1:
                raise UserError(f"{address} cannot be fetched, {TRIES} times: {first_line(error)}") from error
            time.sleep(PAUSE * 2**number)
    raise AssertionError("the last try returns or raises")


def piece(system: Any, path: str, start: int, size: int, address: str) -> bytes:
    """Return so many bytes of a file from a place on."""

    def fetch() -> bytes:
        content = bytes(system.cat_file(path, start=start, end=start + size))
        if len(content) != size:
            raise OSError(f"{len(content)} bytes came where {size} were asked for")
        return content

    return retried(fetch, address)
