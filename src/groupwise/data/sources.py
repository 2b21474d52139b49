"""Which shards a source means: those of a folder, of a pattern, or at an address."""

import glob
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from groupwise.data.dataset import Dataset, SplitRule
from groupwise.data.files import is_hidden
from groupwise.data.remote import file_system, is_remote, retried
from groupwise.data.shard_cache import ShardCache, is_shard
from groupwise.data.shards import dataset_of_shards, expand_braces
from groupwise.errors import UserError
from groupwise.writing import expanded

AT_ONCE = 8  # shards that are opened at once


def is_pattern(source: str) -> bool:
    """Return whether a source is an address, or a pattern of shards' names, and no path."""
    has_pattern = glob.has_magic(source) or "{" in source
    return is_remote(source) or (has_pattern and is_shard(source) and not expanded(source).exists())


def shards_in(folder: Path) -> list[str]:
    """Return the shards of a folder, or of the data/ in it, that holds them and no folders beside; none otherwise."""
    for place in filter(Path.is_dir, (folder, folder / "data")):
        entries = [entry for entry in place.iterdir() if not is_hidden(entry.name)]
        found = sorted(str(entry) for entry in entries if is_shard(entry.name))
        if found and not any(entry.is_dir() for entry in entries):
            return found
    return []


def dataset_of_sources(source: str, addresses: Sequence[str], rule: SplitRule) -> Dataset:
    """Return the data set in shards.

    Args:
        source: what the user named.
        addresses: of the shards, of which none may have braces or other patterns any more.
        rule: divides the images where no shard's name says that it is of a test.

    Raises:
        UserError: a shard cannot be had or read.
    """
    cache = ShardCache()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shards") as threads:
        shards = list(threads.map(cache.opened, addresses))
        classes = cache.classes(addresses[0])
    return dataset_of_shards(_name(source), shards, classes, rule)


def addresses_of(source: str) -> list[str]:
    """Return the addresses that a source with braces, or with * and ?, stands for; of a folder its shards.

    Raises:
        UserError: there are none.
    """
    found = [address for text in expand_braces(source) for address in _matching(text)]
    if not found:
        raise UserError(f"{source} names no shards: no .tar, .parquet or .tfrecord file is there")
    return found


def _matching(text: str) -> list[str]:
    if not is_remote(text):
        paths = glob.glob(str(expanded(text))) if glob.has_magic(text) else [str(expanded(text))]  # noqa: PTH207
        return sorted(paths)
    if is_shard(text) and not glob.has_magic(text):
        return [text]
    system, path = file_system(text)
    found = retried(lambda: system.glob(path) if glob.has_magic(text) else system.find(path), text)
    return [system.unstrip_protocol(entry) for entry in sorted(found) if is_shard(entry)]


def _name(source: str) -> str:
    """Return what a data set is called: the last part of its source that is no pattern."""
    parts = [re.split(r"[\[{*?]", part)[0].rstrip("-_.") for part in source.split("/")]
    return next(part for part in reversed(parts) if part)
