"""Shards: written, read at random from here or by address, kept, fetched again where that failed."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.cli import main
from groupwise.data import (
    Dataset,
    Decoding,
    ImageBatches,
    Preprocessing,
    Variation,
    load_dataset,
    remote,
    shard_cache,
)
from groupwise.data.sharding import write_shards
from groupwise.data.shards import expand_braces, samples_of
from groupwise.errors import UserError
from tests.serving import Files, serving
from tests.test_data_published import jpeg, tar_of, write

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is kept; and no pauses."""
    monkeypatch.setenv("GROUPWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    return tmp_path / "cache" / "data"


PHOTOS = {f"{kind}/inner/{n}.JPG": jpeg(10 * n) for kind in ("a cat", "dog") for n in range(12)}


def photos(folder: Path) -> Dataset:
    return load_dataset(write(folder / "photos", PHOTOS))


def contents(dataset: Dataset) -> Counter[tuple[str, bytes]]:
    """The class and the pixels of each image, of both sides."""
    return Counter(
        (dataset.class_names[label], split.read(index).tobytes())
        for split in (dataset.train, dataset.test)
        for index, label in enumerate(split.labels)
    )


def assert_same_images(dataset: Dataset, other: Dataset) -> None:
    assert dataset.class_names == other.class_names
    assert contents(dataset) == contents(other)
    for one, two in ((dataset.train, other.train), (dataset.test, other.test)):
        np.testing.assert_array_equal(np.sort(one.identities()), np.sort(two.identities()))


def small_shards(dataset: Dataset, folder: Path) -> list[Path]:
    return write_shards(dataset, folder, 0.01)


def test_shards_hold_a_folder_by_the_same_identities(tmp_path: Path) -> None:
    """So that the same images are tested on, and that a run goes on with them."""
    original = photos(tmp_path)
    progress: list[tuple[int, int]] = []
    paths = write_shards(original, tmp_path / "shards", 0.01, lambda *done: progress.append(done))
    assert len(paths) > 2
    assert progress[-1] == (24, 24)
    assert all(path.stat().st_size < 25_000 for path in paths)
    for source in (tmp_path / "shards", f"{tmp_path}/shards/images-{{000000..{len(paths) - 1:06}}}.tar"):
        read = load_dataset(source)
        assert_same_images(original, read)
        assert read.undivided is not None
    assert load_dataset(f"{tmp_path}/shards/images-*.tar").name == "images"
    assert {path.read_bytes()[:100].rstrip(b"\0").split(b"/")[0] for path in paths} <= {b"a cat", b"dog"}


def test_splits_stay_splits(tmp_path: Path) -> None:
    files = {f"{split}/{kind}/{split}{n}.jpg": jpeg(10 * n) for split in ("train", "val", "test") for kind in "ab"
             for n in range(3)}  # fmt: skip
    original = load_dataset(write(tmp_path / "photos", files))
    paths = small_shards(original, tmp_path / "shards")
    assert {path.name.split("-")[0] for path in paths} == {"train", "validation", "test"}
    read = load_dataset(tmp_path / "shards")
    assert_same_images(original, read)
    assert read.validation is not None
    assert len(read.validation) == 6
    assert len(load_dataset(str(tmp_path / "shards" / "train-*.tar"), test_fraction=1.0).test) == 6


def test_what_is_no_file_is_written_as_png(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 5, 6), np.uint8)
    np.savez(tmp_path / "a.npz", x=pixels, y=np.arange(20) % 2)
    original = load_dataset(tmp_path / "a.npz")
    small_shards(original, tmp_path / "shards")
    read = load_dataset(tmp_path / "shards")
    assert (read.channels, read.image_size) == (1, (5, 6))
    assert contents(read) == contents(original)


def test_a_folder_with_shards_is_not_written_to(tmp_path: Path) -> None:
    small_shards(photos(tmp_path), tmp_path / "shards")
    with pytest.raises(UserError, match="holds shards: name another folder"):
        small_shards(photos(tmp_path), tmp_path / "shards")


def test_the_command_writes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = photos(tmp_path)
    assert main(["shard", str(tmp_path / "photos"), "--output", str(tmp_path / "shards"), "--size", "1"]) == 0
    assert "shards   1, 0.1 MB" in capsys.readouterr().out
    assert_same_images(original, load_dataset(tmp_path / "shards"))
    assert main(["shard", str(tmp_path / "photos"), "--output", str(tmp_path / "shards")]) == 2
    assert "holds shards: name another folder" in capsys.readouterr().err


def test_the_command_writes_what_is_too_small_to_be_divided(tmp_path: Path) -> None:
    write(tmp_path / "photos", {"a/1.jpg": jpeg(0), "b/1.jpg": jpeg(10)})
    assert main(["shard", str(tmp_path / "photos"), "--output", str(tmp_path / "shards")]) == 0
    assert len(load_dataset(tmp_path / "shards", test_fraction=1.0).test) == 2


def test_labels_are_told_by_cls_json_text_or_folder(tmp_path: Path) -> None:
    def shard(files: dict[str, bytes], name: str = "one.tar") -> Dataset:
        return load_dataset(write(tmp_path, {name: tar_of(files)}) / name, test_fraction=1.0)

    images = {f"{n:03}.jpg": jpeg(10 * n) for n in range(12)}
    by_number = shard({**images, **{f"{n:03}.cls": str(n).encode() for n in range(12)}})
    assert by_number.class_names == tuple(f"{n:02}" for n in range(12))
    assert by_number.test.labels.tolist() == list(range(12))
    by_json = {f"{n:03}.json": json.dumps({"label": "xy"[n % 2], "width": 8}).encode() for n in range(12)}
    assert shard({**images, **by_json}, "two.tar").test.labels.tolist() == [n % 2 for n in range(12)]
    by_text = {f"{n:03}.txt": b"xy"[n % 2 : n % 2 + 1] for n in range(12)}
    assert shard({**images, **by_text}, "three.tar").class_names == ("x", "y")
    by_folder = {f"./{'xy'[n % 2]}/{n}.seg.v1.jpg": jpeg(0) for n in range(2)} | {
        f"./{'xy'[n % 2]}/{n}.jpg": jpeg(n) for n in range(4)
    }
    assert shard(by_folder, "four.tar").test.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(UserError, match=r"five\.tar: the sample 000 has no class"):
        shard(images, "five.tar")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("a.tar", ["a.tar"]),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert expand_braces(text) == names


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{folder}/none-*.tar", "names no shards: no .tar"),
        ("{folder}/none-{{0..1}}.tar", r"none-0\.tar cannot be read: no such file"),
        ("{folder}/bad-*.tar", "bad-0.tar: not a readable tar file without compression"),
        ("{folder}/short.tar", r"the file beside it names 1 classes, an image is of class 1"),
    ],
)
def test_shards_that_cannot_be_read_are_refused(source: str, says: str, tmp_path: Path) -> None:
    short = tar_of({"1.jpg": jpeg(0), "1.cls": b"1", "0.jpg": jpeg(0), "0.cls": b"0"})
    write(tmp_path, {"bad-0.tar": b"no tar" * 300, "short.tar": short, "classes.txt": "a\n"})
    with pytest.raises(UserError, match=says):
        load_dataset(source.format(folder=tmp_path))


def test_an_index_is_read_once_and_anew_where_the_shard_changed(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = samples_of

    def noting(file: Any, name: str, streams: bool = False) -> Any:
        read.append(name)
        return original(file, name, streams)

    monkeypatch.setattr(shard_cache, "samples_of", noting)
    (path,) = write_shards(photos(tmp_path), tmp_path / "shards")
    for _ in range(2):
        assert len(load_dataset(path, test_fraction=1.0).test) == 24
    assert read == ["images-000000.tar"]
    os.utime(path, (1, 1))
    load_dataset(path)
    assert len(read) == 2
    for index in kept.glob("*.json"):
        index.write_text("[damaged")
    assert len(load_dataset(path, test_fraction=1.0).test) == 24


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of tmp_path/shards."""
    pytest.importorskip("aiohttp")
    with serving(tmp_path / "shards") as address:
        yield address


def test_shards_by_address_are_fetched_once_and_kept(tmp_path: Path, kept: Path, server: str) -> None:
    original = photos(tmp_path)
    paths = small_shards(original, tmp_path / "shards")
    source = f"{server}/images-{{000000..{len(paths) - 1:06}}}.tar"
    Files.failures = 3
    assert_same_images(original, load_dataset(source))
    assert len(list(kept.glob("*.shard"))) == len(paths)
    Files.requests.clear()
    assert_same_images(original, load_dataset(source))
    assert not any(name.endswith(".tar") for name in Files.requests if Files.requests[name] > 1)


def test_what_is_kept_is_bounded_and_the_rest_is_fetched_image_by_image(
    tmp_path: Path, kept: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = photos(tmp_path)
    paths = small_shards(original, tmp_path / "shards")
    source = f"{server}/images-{{000000..{len(paths) - 1:06}}}.tar"
    sizes = [path.stat().st_size for path in paths]
    for limit in (sum(sizes[:2]) + 1, max(sizes) + 1, 0):
        monkeypatch.setenv("GROUPWISE_DATA_CACHE", str(limit / 1e9))
        for shard in kept.glob("*.shard"):
            shard.unlink()
        read = load_dataset(source)
        assert sum(path.stat().st_size for path in kept.glob("*.shard")) <= limit
        Files.failures = 2
        assert_same_images(original, read)


def test_an_address_that_is_gone_ends_a_training_and_breaks_no_image(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUPWISE_DATA_CACHE", "0")
    (path,) = write_shards(photos(tmp_path), tmp_path / "shards")
    split = load_dataset(f"{server}/{path.name}", test_fraction=1.0).test
    batches = ImageBatches(split, 4, (6, 8, 3), 2, Preprocessing(), Variation(shuffle=True), Decoding(cache=False))
    assert len(batches[0][0]) == 4
    Files.failures = 10_000
    with pytest.raises(UserError, match="cannot be fetched, 8 times"):
        next(images for images, _ in map(batches.batch, range(1, 6)) if not len(images))
    assert batches.failure is not None
    assert not batches.broken
    Files.failures = 0


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path, kept: Path, server: str, monkeypatch: Any) -> None:
    (path,) = write_shards(photos(tmp_path), tmp_path / "shards")
    kept.mkdir(parents=True)
    for age, name in ((50, "old"), (10, "new")):
        (kept / f"{name}.shard").write_bytes(bytes(100_000))
        os.utime(kept / f"{name}.shard", (1e9 - age, 1e9 - age))
    monkeypatch.setenv("GROUPWISE_DATA_CACHE", str((100_000 + path.stat().st_size) / 1e9))
    load_dataset(f"{server}/{path.name}")
    names = [shard.stem for shard in kept.glob("*.shard")]
    assert "new" in names
    assert "old" not in names
    assert len(names) == 2


def test_an_address_that_fails_says_so(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(photos(tmp_path), tmp_path / "shards")
    with pytest.raises(UserError, match=r"nowhere\.tar is not there"):
        load_dataset(f"{server}/nowhere.tar")
    Files.failures = 1000
    with pytest.raises(UserError, match=r"images-000000\.tar cannot be fetched, 8 times: .*503"):
        load_dataset(f"{server}/images-000000.tar")
    monkeypatch.setenv("GROUPWISE_DATA_CACHE", "much")
    with pytest.raises(UserError, match="GROUPWISE_DATA_CACHE='much': must be a number of gigabytes"):
        load_dataset(f"{server}/images-000000.tar")


def test_shards_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    servers = pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    server = servers.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        system = s3fs.S3FileSystem()
        system.mkdir("photos")
        original = photos(tmp_path)
        small_shards(original, tmp_path / "shards")
        system.put(f"{tmp_path}/shards", "photos/shards", recursive=True)
        for source in ("s3://photos/shards", "s3://photos/shards/images-*.tar"):
            assert_same_images(original, load_dataset(source))
    finally:
        server.stop()


def test_an_address_of_no_known_kind_says_so() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="cannot be read: Protocol not known"):
        load_dataset("nosuch://place/a.tar")
