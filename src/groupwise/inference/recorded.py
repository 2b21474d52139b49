"""The record of a saved network's training images, read without any framework, and data divided by it."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from groupwise.data import Dataset
from groupwise.data.record import SplitRecord, changes_since, divided_as_before
from groupwise.errors import UserError, argument
from groupwise.inference.run_folder import RunFolder, read_json
from groupwise.writing import expanded

SPLIT = "split"
"""The record's key in a network's metadata."""


def read_record(run_or_model: str | Path) -> SplitRecord | None:
    """Return the record in a run's folder or a model's file; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = expanded(run_or_model)
    folder = RunFolder(path)
    if not folder.split.exists():
        return record_in(_metadata(path), str(path))
    remedy = f"begin a new run, with {argument('weights', path)}"
    if SPLIT in _metadata(path):
        remedy = f"remove that file, since {folder.last.name} holds the record, too"
    try:
        content = read_json(folder.split)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from error
    return SplitRecord.of(content, str(folder.split), remedy)


def record_in(metadata: Mapping[str, Any], name: str) -> SplitRecord | None:
    """Return the record in the metadata of the network of a name; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    remedy = "take another copy of the model, or train it anew"
    return SplitRecord.of(metadata[SPLIT], name, remedy) if SPLIT in metadata else None


def divide_for(dataset: Dataset, run_or_model: str | Path, as_given: bool = False) -> tuple[Dataset, list[str]]:
    """Return a data set divided as for a network's training, and sentences on what may mislead.

    Args:
        dataset: to test or to train the network on.
        run_or_model: the run's folder or the model's file.
        as_given: keep the split that the data set has, since the user asked for it.

    Raises:
        UserError: the record is damaged, or no image is left to test on.
    """
    record = read_record(run_or_model)
    if record is not None:
        dataset = dataset if as_given else divided_as_before(dataset, record)
        return dataset, changes_since(dataset, record)
    # Published weights were trained on what their publishers say.
    if dataset.undivided is None or "weights" in _metadata(expanded(run_or_model)):
        return dataset, []
    return dataset, [
        f"{run_or_model} has no record of the images that it was trained on: those that are tested on may be among them"
    ]


def _metadata(path: Path) -> dict[str, Any]:
    """Return a saved network's metadata; nothing where the file cannot be read, which loading it will say."""
    try:
        metadata = json.loads(_description(path))["config"]["metadata"]
        return metadata if isinstance(metadata, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile):
        return {}


def _description(path: Path) -> Any:
    """Return the JSON that describes a saved model, in any form in which Keras saves one."""
    if path.is_dir():
        if (path / "config.json").is_file():
            return (path / "config.json").read_bytes()
        path = RunFolder(path).last
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            return file.attrs["model_config"]
    with zipfile.ZipFile(path) as archive:
        return archive.read("config.json")
