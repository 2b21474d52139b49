"""Images out of TFRecord files, TensorFlow's, without TensorFlow: records of `tf.train.Example`, an image each."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import IO, Any, TypeAlias

from groupwise.data.parquet import LABELS
from groupwise.data.rows import files_of_row
from groupwise.errors import UserError

Feature: TypeAlias = bytes | int

# As TensorFlow Datasets, and the scripts for ImageNet, name them: "x-train.tfrecord-0-of-9", "train-00000-of-01024".
_NAME = re.compile(r"\.tfrecords?[^/]*$|-[^-/]+-of-\d{5}$")
IMAGES = ("image/encoded", "image", "image_raw", "img", "jpg", "jpeg", "png")
NAMED = ("image/class/synset", "image/class/text", "image/class/label", *LABELS)  # a name rather than a number
PATHS = ("image/filename", "file_name", "filename", "path")
INDICES = (".idx", ".index")  # beside the files
LARGEST = 1 << 30  # bytes of a record


def is_tfrecord(name: str) -> bool:
    """Return whether a file's name, or a pattern of names, is one of TFRecord files.

    Examples:
        >>> [is_tfrecord(name) for name in ("a.tfrecord", "train-*-of-01024", "a.tfrecord.idx")]
        [True, True, False]
    """
    return _NAME.search(name) is not None and not name.endswith(INDICES)


def samples_of_tfrecord(file: IO[bytes], name: str) -> Iterator[dict[str, bytes]]:
    """Yield the files of each sample, as a shard has them: the image as it is, and its class.

    Args:
        file: of the records, open.
        name: of it, for messages, and for images that have no name of their own.

    Raises:
        UserError: it is no TFRecord file, or its records have no image or no class.
    """
    keys: set[str] = set()
    for number, record in enumerate(_records(file, name)):
        try:
            features = dict(_features(record))
        except (IndexError, TypeError, ValueError) as error:
            raise UserError(f"{name}: record {number} is no tf.train.Example") from error
        image, label = _first(features, IMAGES), _first(features, NAMED)
        if not isinstance(image, bytes) or label is None:
            lacking = "class" if isinstance(image, bytes) else "image"
            raise UserError(f"{name}: record {number} has no {lacking}, only {', '.join(sorted(features))}")
        if isinstance(label, int) and label < 0:
            instead = "name the other files, by a pattern of theirs"
            raise UserError(f"{name}: record {number} has the number {label} for a class that is not told: {instead}")
        path = _first(features, PATHS)
        text = path.decode(errors="replace") if isinstance(path, bytes) else None
        said = label.decode(errors="replace") if isinstance(label, bytes) else str(label)
        yield files_of_row(image, text, said, f"{name}/{number:08}", keys)


def _first(features: Mapping[str, Feature], names: tuple[str, ...]) -> Feature | None:
    return next((features[name] for name in names if name in features), None)


def _records(file: IO[bytes], name: str) -> Iterator[memoryview]:
    """Yield each record: after its length, of eight bytes, and that one's checksum, and before its own checksum."""
    while header := file.read(12):
        length = int.from_bytes(header[:8], "little")
        if len(header) < 12 or length > LARGEST or int.from_bytes(header[8:], "little") != _checksum(header[:8]):
            raise UserError(f"{name}: not a readable TFRecord file without compression")
        record = file.read(length + 4)
        if len(record) < length + 4:
            raise UserError(f"{name}: a TFRecord file that is cut short")
        yield memoryview(record)[:length]


def _checksum(content: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of a few bytes, masked as TensorFlow masks it."""
    value = 0xFFFFFFFF
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _features(example: memoryview) -> Iterator[tuple[str, Feature]]:
    """Yield the name and the first value of each feature that has bytes or whole numbers.

    An Example is a message of Features (1), those of entries (1) of a name (1) and a Feature (2), and that of a list of
    bytes (1), floats (2) or numbers (3), whose values (1) may be packed.
    """
    for entry in _within(example, 1, 1):
        name = str(next(_of(entry, 1), b""), "utf-8")
        for value in islice(_within(entry, 2, 1, 1), 1):
            yield name, bytes(memoryview(value))
        for value in islice(_within(entry, 2, 3, 1), 1):
            yield name, _signed(value if isinstance(value, int) else _varint(value, 0)[0])


def _within(message: memoryview, wanted: int, *further: int) -> Iterator[Any]:
    """Yield the values of a field of the messages in a field, and so on. Raises TypeError where they are none."""
    for value in _of(message, wanted):
        yield from _within(value, *further) if further else (value,)


def _of(message: memoryview, wanted: int) -> Iterator[Any]:
    """Yield the values of a field of a message: bytes, or a whole number (Protocol Buffers' encoding)."""
    at = 0
    value: Any
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
            if at > len(message):
                raise ValueError("a field ends behind its message")
        elif kind in (1, 5):
            value, at = None, at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"there is no field of kind {kind}")
        if number == wanted:
            yield value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
