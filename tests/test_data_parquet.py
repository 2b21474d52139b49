"""Parquet files of the Hugging Face layout are data sets, here and by address."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.data import load_dataset, remote
from groupwise.data import parquet as parquet_files
from groupwise.errors import UserError
from tests.serving import Files, serving
from tests.test_data_published import jpeg, seen, write

pytestmark = pytest.mark.once
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept; and no pauses, and few rows at once."""
    monkeypatch.setattr(parquet_files, "ROWS", 4)
    monkeypatch.setenv("GROUPWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    return tmp_path / "cache" / "data"


def write_table(path: Path, images: list[Any], labels: list[Any], names: list[str] | None = None, **more: Any) -> Path:
    """A table of images and labels, ten rows a group, as the library `datasets` writes it."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(images, kind), "label": labels, **more})
    told = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table.replace_schema_metadata({"huggingface": told}), path, row_group_size=10)
    return path


def images(count: int, path: str | None = "{}.jpg") -> list[dict[str, Any]]:
    return [{"bytes": jpeg(10 * n), "path": path and path.format(n)} for n in range(count)]


def test_splits_by_name_and_classes_by_the_table(tmp_path: Path) -> None:
    names = ["zebra", "ant"]
    for split, count in (("train", 24), ("test", 6)):
        for part in range(2):
            path = tmp_path / "data" / f"{split}-0000{part}-of-00002.parquet"
            write_table(path, images(count), [n % 2 for n in range(count)], names, more=list(range(count)))
    write(tmp_path, {"README.md": "about it"})
    for source in (tmp_path, f"{tmp_path}/data/*-0000{{0..1}}-of-00002.parquet"):
        dataset = load_dataset(source)
        assert dataset.class_names == ("ant", "zebra")
        assert seen(dataset.train, dataset) == 2 * [(names[n % 2], n) for n in range(24)]
        assert seen(dataset.test, dataset) == 2 * [(names[n % 2], n) for n in range(6)]


def test_images_without_names_of_any_kind(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.parquet", [*images(4, None), *images(4, "same.jpg")], list("xyxyxyxy"))
    dataset = load_dataset(path, test_fraction=1.0)
    assert sorted(seen(dataset.test, dataset)) == sorted([("xy"[n % 2], n % 4) for n in range(8)])
    assert dataset.test.names[0] == "a.parquet/a/00000000.jpeg"
    assert len(np.unique(dataset.test.identities())) == 8


def test_a_table_is_laid_out_once(tmp_path: Path, kept: Path) -> None:
    path = write_table(tmp_path / "a.parquet", images(6), list("xyxyxy"))
    load_dataset(path)
    (shard,) = kept.glob("*.shard")
    written = shard.stat().st_ino
    dataset = load_dataset(path)
    assert shard.stat().st_ino == written
    shard.unlink()
    with pytest.raises(UserError, match=r"a\.parquet is gone from .*, where another data set needed the room"):
        dataset.train.read(0)


def test_by_address(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    write_table(tmp_path / "files" / "train-0.parquet", images(24), list("xyz" * 8))
    with serving(tmp_path / "files") as address:
        Files.failures = 2
        dataset = load_dataset(f"{address}/train-0.parquet", test_fraction=1.0)
        assert seen(dataset.test, dataset) == [("xyz"[n % 3], n) for n in range(24)]


def test_tables_that_cannot_be_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_table(tmp_path / "a.parquet", images(6), list("xyxyxy"))
    (tmp_path / "short.parquet").write_bytes(whole.read_bytes()[:-50])
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"image": [{"bytes": b"", "path": ""}]}), tmp_path / "no.parquet")
    for name, says in (
        ("short", "short.parquet: not a readable Parquet file"),
        ("text", 'text.parquet has no column of images, {"bytes", "path"}, only text, label'),
        ("no", "no.parquet has no column of labels, only image"),
    ):
        with pytest.raises(UserError) as caught:
            load_dataset(tmp_path / f"{name}.parquet")
        assert says in str(caught.value)
    monkeypatch.setenv("GROUPWISE_DATA_CACHE", "0")
    with pytest.raises(UserError, match=r"has no room in .* let GROUPWISE_DATA_CACHE be more gigabytes"):
        load_dataset(whole)
