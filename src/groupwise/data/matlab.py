"""Arrays out of MATLAB's files of level 5, which SVHN, Oxford's flowers and ImageNet's classes are published in.

Source: The MathWorks, MAT-File Format, 2024, chapter 1. Files of level 7.3, which are HDF5, are none of these.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from groupwise.errors import UserError

Array: TypeAlias = NDArray[Any]

HEADER = 128  # bytes, of which the last four are the version and the order of bytes
COMPRESSED, MATRIX = 15, 14
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}
CELL, STRUCTURE, CHARACTERS, FIRST_NUMERIC, LAST_NUMERIC = 1, 2, 4, 6, 15
MOST_BYTES = 1 << 32  # of one array once decompressed: what is damaged must not take all memory


def read_mat(path: Path) -> dict[str, Array]:
    """Return the arrays of a file by name.

    Numbers keep their shape; text is an array of one string; a structure is an object array of dictionaries, a cell
    array an object array. All else (sparse arrays, objects) is left out.

    Raises:
        UserError: it is no such file, or damaged.
    """
    try:
        content = path.read_bytes()
        if content[HEADER - 2 : HEADER] != b"IM":
            raise ValueError("it is no MATLAB file of level 5 in this order of bytes")
        matrices = (_matrix(body) for kind, body in _elements(memoryview(content)[HEADER:]) if kind == MATRIX)
        return dict(matrix for matrix in matrices if matrix is not None)
    except (OSError, ValueError, IndexError, UnicodeError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: not a readable MATLAB file ({error})") from error


def _elements(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the kind and the bytes of each element."""
    while len(content) >= 8:
        kind, size = struct.unpack_from("<II", content)
        if kind >> 16:  # a small one: its size stands in the upper half, its bytes in place of the size
            kind, size, start, length = kind & 0xFFFF, kind >> 16, 4, 8
        else:
            start, length = 8, 8 + size + (-size % 8 if kind != COMPRESSED else 0)
        body = content[start : start + size]
        if len(body) < size:
            raise ValueError("it is truncated")
        if kind == COMPRESSED:
            yield from _elements(memoryview(_decompressed(body)))
        else:
            yield kind, body
        content = content[length:]


def _decompressed(body: memoryview) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(body, MOST_BYTES)
    if not stream.eof:
        raise ValueError("an array in it is truncated or too large")
    return content


def _matrix(content: memoryview) -> tuple[str, Array] | None:
    """Return the name and the values of an array; None for one of another kind."""
    elements = _elements(content)
    kind = _numbers(*next(elements)).view(np.uint8)[0]
    shape = tuple(_numbers(*next(elements)).tolist())
    name = bytes(next(elements)[1]).decode("ascii")
    if kind == STRUCTURE:
        length = int(_numbers(*next(elements))[0])
        fields = np.frombuffer(next(elements)[1], f"S{length}")
        values = iter([_value(body) for _, body in elements])
        count = int(np.prod(shape))
        return name, _objects([{field.decode(): next(values) for field in fields} for _ in range(count)], shape)
    if kind == CELL:
        return name, _objects([_value(body) for _, body in elements], shape)
    if kind == CHARACTERS:
        return name, np.array(["".join(map(chr, _numbers(*next(elements)).tolist()))])
    if FIRST_NUMERIC <= kind <= LAST_NUMERIC:
        return name, _numbers(*next(elements)).reshape(shape, order="F")
    return None


def _value(content: memoryview) -> Array | None:
    matrix = _matrix(content) if len(content) else None
    return None if matrix is None else matrix[1]


def _numbers(kind: int, body: memoryview) -> Array:
    if kind not in NUMBERS:
        raise ValueError(f"an element of kind {kind} stands where numbers should")
    return np.frombuffer(body, "<" + NUMBERS[kind])


def _objects(values: list[Any], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape, order="F")
