"""Images out of Parquet files of the Hugging Face layout: a column of images, {"bytes", "path"}, and one of labels."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from groupwise.data.rows import files_of_row
from groupwise.errors import UserError, check_installed, first_line

ROWS = 64  # that are in memory at once
LABELS = ("label", "labels", "fine_label", "class", "target")  # of several columns of classes, the first of these


def samples_of_parquet(file: Any, name: str) -> Iterator[dict[str, bytes]]:
    """Yield the files of each sample, as a shard has them: the image as it is, and its class by name.

    Args:
        file: the path of a Parquet file, or one that is open.
        name: of it, for messages, and for images that have no name of their own.

    Raises:
        UserError: it is no Parquet file, or has no such columns.
    """
    check_installed("pyarrow", name, "shards")
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(file)
        image, label, classes = _columns(table.schema_arrow, name)
        keys: set[str] = set()
        row = 0
        for batch in table.iter_batches(ROWS, columns=[image, label]):
            for content, value in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
                content = content or {}
                is_known = isinstance(value, int) and 0 <= value < len(classes)
                said = str(classes[value] if is_known else value)
                yield files_of_row(
                    content.get("bytes") or b"", content.get("path"), said, f"{PurePosixPath(name).stem}/{row:08}", keys
                )
                row += 1
    except (ArrowException, OSError) as error:
        raise UserError(f"{name}: not a readable Parquet file ({first_line(error)})") from error


def _columns(schema: Any, name: str) -> tuple[str, str, Sequence[str]]:
    """Return the column of images, that of labels, and the classes' names by number, if they are told."""
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features: Mapping[str, Any] = told.get("info", {}).get("features", {})
    images = [field.name for field in schema if str(field.type).startswith("struct<bytes")]
    labels = [column for column, feature in features.items() if feature.get("_type") == "ClassLabel"]
    labels = labels or [field.name for field in schema if field.name in LABELS]
    if not images or not labels:
        lacking = 'images, {"bytes", "path"}' if not images else "labels"
        raise UserError(f"{name} has no column of {lacking}, only {', '.join(schema.names)}")
    label = next((column for column in LABELS if column in labels), labels[0])
    return images[0], label, features.get(label, {}).get("names", ())
