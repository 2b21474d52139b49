"""TFRecord files, as TensorFlow writes them, are data sets; they are read without it."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from groupwise.data import load_dataset
from groupwise.errors import UserError
from tests.frameworks import BACKEND
from tests.test_data_published import jpeg, seen, write

if BACKEND != "tensorflow":
    pytest.skip("Keras runs on another backend than TensorFlow, which writes the files", allow_module_level=True)
tf: Any = importlib.import_module("tensorflow")


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUPWISE_CACHE", str(tmp_path / "cache"))


def feature(value: bytes | int | float | list[int]) -> Any:
    """Return a value as TensorFlow's own classes hold it."""
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=value if isinstance(value, list) else [value]))


def write_records(path: Path, records: list[dict[str, Any]], options: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for record in records:
            features = tf.train.Features(feature={name: feature(value) for name, value in record.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())
    return path


def test_as_tensorflow_datasets_writes_them(tmp_path: Path) -> None:
    names = ["zebra", "ant"]
    for split, count in (("train", 24), ("test", 6)):
        for part in range(2):
            path = tmp_path / f"set-{split}.tfrecord-0000{part}-of-00002"
            records = [
                {"file_name": f"{part}/{n}.jpg".encode(), "image": jpeg(10 * n), "label": n % 2} for n in range(count)
            ]
            write_records(path, records)
    write(tmp_path, {"label.labels.txt": "\n".join(names), "dataset_info.json": "{}", "features.json": "{}"})
    for source in (tmp_path, f"{tmp_path}/set-*.tfrecord-0000{{0..1}}-of-00002", f"{tmp_path}/*.tfrecord*"):
        dataset = load_dataset(source)
        assert dataset.class_names == ("ant", "zebra")
        assert seen(dataset.train, dataset) == 2 * [(names[n % 2], n) for n in range(24)]
        assert seen(dataset.test, dataset) == 2 * [(names[n % 2], n) for n in range(6)]


def test_as_the_scripts_for_imagenet_write_them(tmp_path: Path) -> None:
    records = [
        {
            "image/height": 6,
            "image/colorspace": b"RGB",
            "image/class/label": n % 3 + 1,
            "image/class/synset": f"n0000000{n % 3}".encode(),
            "image/class/text": b"a, b",
            "image/object/bbox/xmin": 0.5,
            "image/object/bbox/label": [7, 300, -1],
            "image/filename": f"n0000000{n % 3}_{n}.JPEG".encode(),
            "image/encoded": jpeg(10 * n),
        }
        for n in range(12)
    ]
    write_records(tmp_path / "train-00000-of-01024", records)
    write_records(tmp_path / "validation-00000-of-00128", records[:6])
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("n00000000", "n00000001", "n00000002")
    assert seen(dataset.train, dataset) == [(f"n0000000{n % 3}", n) for n in range(12)]
    assert seen(dataset.test, dataset) == [(f"n0000000{n % 3}", n) for n in range(6)]
    assert dataset.train.names[4] == "train-00000-of-01024/n00000001_4.jpeg"


def test_numbers_of_many_classes_without_names(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.tfrecords", [{"image": jpeg(10 * n), "label": 125 + n} for n in range(6)])
    dataset = load_dataset(path, test_fraction=1.0)
    assert seen(dataset.test, dataset) == [(str(125 + n), n) for n in range(6)]


def test_no_two_images_are_taken_for_one(tmp_path: Path) -> None:
    """Files of one split, whose images have no names: of the same places, class and size."""
    for part in range(2):
        records = [{"image": jpeg(10), "label": n % 2} for n in range(6)]
        write_records(tmp_path / f"set-train.tfrecord-0000{part}-of-00002", records)
    dataset = load_dataset(tmp_path, test_fraction=1.0)
    assert len(set(dataset.test.identities().tolist())) == 12


def test_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    whole = write_records(tmp_path / "a.tfrecord", [{"image": jpeg(10 * n), "label": n % 2} for n in range(6)])
    (tmp_path / "short.tfrecord").write_bytes(whole.read_bytes()[:-50])
    (tmp_path / "text.tfrecord").write_text("no record at all")
    write_records(tmp_path / "blind.tfrecord", [{"text": b"a", "label": 1}])
    write_records(tmp_path / "alone.tfrecord", [{"image": jpeg(10), "width": 8}])
    write_records(tmp_path / "packed.tfrecord", [{"image": jpeg(10), "label": 1}], tf.io.TFRecordOptions("GZIP"))
    write_records(tmp_path / "secret.tfrecord", [{"image": jpeg(10), "label": -1}])
    others = {
        "other": b"\xff\xff no message",
        "event": tf.compat.v1.Event(wall_time=1.0, step=2).SerializeToString(),
        "number": b"\x08\x05",
        "nested": b"\x0a\x04\x0a\x02\x08\x05",  # a name that is a number
    }
    for name, content in others.items():
        with tf.io.TFRecordWriter(str(tmp_path / f"{name}.tfrecord")) as writer:
            writer.write(content)
    for name, says in (
        ("short", "a TFRecord file that is cut short"),
        ("text", "not a readable TFRecord file without compression"),
        ("packed", "not a readable TFRecord file without compression"),
        ("blind", "record 0 has no image, only label, text"),
        ("alone", "record 0 has no class, only image, width"),
        ("secret", "record 0 has the number -1 for a class that is not told"),
        *((name, r"record 0 is no tf\.train\.Example") for name in others),
    ):
        with pytest.raises(UserError, match=rf"{name}\.tfrecord: {says}"):
            load_dataset(tmp_path / f"{name}.tfrecord")
