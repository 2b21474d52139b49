"""Data sets of every kind of source are found as they were laid down, and bad ones end in a clear sentence."""

import gzip
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from groupwise.data import BrokenImage, load_dataset
from groupwise.errors import UserError

pytestmark = pytest.mark.once


def picture(value, size=(4, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def files_of(layout):
    """{"train/cat": 3} as {"train/cat/0.png": bytes, ...}; each file's red value is its number."""
    return {f"{folder}/{n}.png": picture(n) for folder, count in layout.items() for n in range(count)}


def write_folder(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def write_zip(root, files, compression=zipfile.ZIP_DEFLATED):
    path = root / "set.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


WRITERS = [write_folder, write_zip]


def test_importing_needs_no_framework():
    code = (
        "import sys, groupwise.data as data; data.load_dataset('digits');"
        "print(sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_digits():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert (dataset.name, dataset.image_size, dataset.channels) == ("digits", (8, 8), 1)
    assert dataset.class_names == tuple("0123456789")
    assert len(dataset.train) + len(dataset.test) == 1797
    assert dataset.validation is None
    image = dataset.train.read(0)
    assert image.shape == (8, 8, 1)
    assert image.dtype == np.uint8
    original = load_digits().images[int(dataset.train.names[0].split("[")[1][:-1])]
    np.testing.assert_array_equal(image[..., 0], np.rint(original * 255 / 16))
    shares = np.bincount(dataset.test.labels) / np.bincount([*dataset.train.labels, *dataset.test.labels])
    assert np.abs(shares - 0.2).max() < 0.07


def test_the_split_is_settled_by_the_seed():
    names = [load_dataset("digits", seed=seed).test.names for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
    small = load_dataset("digits", seed=1, test_fraction=0.1)
    assert len(small.test) < 230
    everything = load_dataset("digits", test_fraction=1.0)
    assert (len(everything.train), len(everything.test)) == (0, 1797)
    with pytest.raises(ValueError, match="test_fraction=0"):
        load_dataset("digits", test_fraction=0)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("top", ["", "top/", "very/deep/top/", "./"])
def test_class_folders_are_split(tmp_path, write, top):
    source = write(tmp_path, files_of({f"{top}dog": 10, f"{top}cat": 5, f"{top}ant": 1}))
    dataset = load_dataset(source, seed=3)
    assert dataset.class_names == ("ant", "cat", "dog")
    assert (dataset.image_size, dataset.channels, dataset.validation) == ((4, 4), 3, None)
    assert np.bincount([*dataset.train.labels, *dataset.test.labels]).tolist() == [1, 5, 10]
    assert set(dataset.train.labels) == {0, 1, 2}
    assert set(dataset.test.labels) == {1, 2}
    assert not set(dataset.train.names) & set(dataset.test.names)
    for split in (dataset.train, dataset.test):
        for index, name in enumerate(split.names):
            *_, class_name, file = name.split("/")
            assert dataset.class_names[split.labels[index]] == class_name
            assert split.read(index)[0, 0, 0] == int(file[:-4])


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("folders", "test_count", "validation_count"),
    [
        (("train", "test"), 2, None),
        (("train", "val"), 2, None),
        (("Training", "Testing", "valid"), 2, 4),
        (("train", "test", "validation"), 2, 4),
    ],
)
def test_split_folders(tmp_path, write, folders, test_count, validation_count):
    counts = dict(zip(folders, (3, 1, 2), strict=False))
    layout = {f"set/{folder}/{name}": count for folder, count in counts.items() for name in "ab"}
    dataset = load_dataset(write(tmp_path, files_of(layout)))
    assert (len(dataset.train), len(dataset.test)) == (6, test_count)
    assert (dataset.validation and len(dataset.validation)) == validation_count
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="it has no named pipes among files, and links need a privilege")
def test_what_is_no_file_is_a_broken_image(tmp_path):
    write_folder(tmp_path, files_of({"cat": 2, "dog": 2, "dog/folder.png": 1}))
    os.mkfifo(tmp_path / "cat" / "2.png")
    os.mkfifo(tmp_path / "cat" / "3")  # nor is it looked into
    (tmp_path / "dog" / "2.png").symlink_to(tmp_path / "nowhere")
    split = load_dataset(tmp_path, test_fraction=1.0).test
    assert split.names[2:5] == ["cat/2.png", "dog/0.png", "dog/1.png"]
    for index, reason in ((2, "no regular file"), (5, "no such file or directory")):
        with pytest.raises(BrokenImage, match=reason):
            split.read(index)
    assert split.read(6).shape == (4, 4, 3)


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, files_of({"cat": 2, "dog": 2, "secret": 2}))
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match="secret cannot be looked into: permission denied"):
        load_dataset(tmp_path)


def test_a_folder_may_link_to_itself(tmp_path):
    write_folder(tmp_path, files_of({"cat": 2, "dog": 2}))
    (tmp_path / "dog" / "again").symlink_to(tmp_path)
    dataset = load_dataset(tmp_path)
    assert len(dataset.train) + len(dataset.test) == 4


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_by_many_threads(tmp_path, compression):
    files = files_of({"cat": 200, "dog": 200})
    split = load_dataset(write_zip(tmp_path, files, compression), test_fraction=1.0).test
    with ThreadPoolExecutor(8) as threads:
        values = [image[0, 0, 0] for image in threads.map(split.read, range(400))]
    assert values == [int(name.split("/")[1][:-4]) for name in split.names]


def test_a_damaged_member_of_a_zip_is_one_broken_image(tmp_path):
    path = write_zip(tmp_path, files_of({"cat": 2, "dog": 2}), zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    path.write_bytes(content)
    split = load_dataset(path, test_fraction=1.0).test
    with pytest.raises(BrokenImage, match=r"cat/0\.png: damaged in the zip file"):
        split.read(0)
    assert split.read(1).shape == (4, 4, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_several_sizes_and_grey_ones(tmp_path, channels):
    for index, size in enumerate([(5, 4), (6, 4), (5, 4), (6, 4)]):
        folder = tmp_path / ("cat" if index < 2 else "dog")
        folder.mkdir(exist_ok=True)
        Image.new("L" if channels == 1 else "RGB", size).save(folder / f"{index}.png")
    dataset = load_dataset(tmp_path)
    assert (dataset.image_size, dataset.channels) == (None, channels)
    assert dataset.train.read(0).shape[-1] == channels


def cifar_batch(count, labels_key, classes, offset=0):
    pixels = np.zeros((count, 3, 32, 32), np.uint8)
    pixels[:, 0], pixels[:, 1, 2, 5] = np.arange(offset, offset + count)[:, None, None], 200
    return {"data": pixels.reshape(count, -1), labels_key: [n % classes for n in range(count)]}


def cifar_files(classes, protocol):
    if classes == 10:
        files = {f"data_batch_{n + 1}": cifar_batch(20, "labels", 10, 20 * n) for n in range(5)}
        files |= {"test_batch": cifar_batch(20, "labels", 10), "batches.meta": {"label_names": list("abcdefghij")}}
    else:
        files = {"train": cifar_batch(100, "fine_labels", 4), "test": cifar_batch(20, "fine_labels", 4)}
        files |= {"meta": {"fine_label_names": list("abcd")}}
    return {name: pickle.dumps(content, protocol) for name, content in files.items()}


def write_tar(root, files):
    path = root / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("write", [write_folder, write_tar])
@pytest.mark.parametrize("classes", [10, 4])
@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar(tmp_path, write, classes, protocol):
    files = {f"cifar-py/{name}": content for name, content in cifar_files(classes, protocol).items()}
    dataset = load_dataset(write(tmp_path, files))
    assert dataset.class_names == tuple("abcdefghij"[:classes])
    assert (len(dataset.train), len(dataset.test), dataset.image_size) == (100, 20, (32, 32))
    image = dataset.train.read(37)
    assert image.shape == (32, 32, 3)
    assert (image[..., 0] == 37).all()
    assert np.argwhere(image[..., 1]).tolist() == [[2, 5]]
    assert dataset.train.labels[37] == 37 % classes


class Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize("evil", [Evil(), np.float64, io.BytesIO(b"")])
def test_a_pickle_that_would_call_something_is_refused(tmp_path, capsys, evil):
    files = cifar_files(10, 2) | {"test_batch": pickle.dumps({"data": evil, "labels": [0]})}
    with pytest.raises(UserError, match="test_batch is not a readable pickle of plain arrays"):
        load_dataset(write_folder(tmp_path, files))
    assert capsys.readouterr().out == ""


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_mnist(tmp_path, compress):
    images = np.arange(6 * 28 * 28).reshape(6, 28, 28).astype(np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2], np.uint8)
    for part, chosen in (("train", slice(0, 4)), ("t10k", slice(3, 6))):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(compress(idx(images[chosen])))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(compress(idx(labels[chosen])))
    dataset = load_dataset(tmp_path)
    assert (dataset.class_names, dataset.channels, dataset.image_size) == (("0", "1", "2"), 1, (28, 28))
    assert dataset.test.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(dataset.test.read(1)[..., 0], images[4])
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(compress(idx(images))[:-100])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: not a readable idx file"):
        load_dataset(tmp_path)


IMAGES = np.arange(8 * 5 * 6 * 3).reshape(8, 5, 6, 3).astype(np.uint8)
LABELS = np.array([0, 1] * 4)


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (IMAGES, LABELS, ("0", "1")),
        (IMAGES, LABELS[:, None] + 5, ("5", "6")),
        (IMAGES, np.eye(2)[LABELS], ("0", "1")),
        (IMAGES, np.array(["cat", "dog"])[LABELS], ("cat", "dog")),
        (IMAGES, np.array([b"caf\xe9", b"caf\xc3\xa9"])[LABELS][:, None], ("caf\\xe9", "caf\u00e9")),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, ("0", "1")),
        (IMAGES / np.float32(255), LABELS, ("0", "1")),
        (IMAGES.astype(np.int64), LABELS.astype(float), ("0", "1")),
    ],
)
@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("x_train", "y_train")])
def test_npz(tmp_path, images, labels, names, keys):
    np.savez(tmp_path / "set.npz", **{keys[0]: images, keys[1]: labels})
    dataset = load_dataset(tmp_path / "set.npz")
    assert (dataset.class_names, dataset.image_size, dataset.channels) == (names, (5, 6), 3)
    assert len(dataset.train) + len(dataset.test) == 8
    assert set(dataset.train.labels) == set(dataset.test.labels) == {0, 1}
    for index, name in enumerate(dataset.train.names):
        original = int(name.split("[")[1][:-1])
        np.testing.assert_array_equal(dataset.train.read(index), IMAGES[original])
        assert dataset.train.labels[index] == LABELS[original]


def test_npz_with_splits(tmp_path):
    np.savez_compressed(tmp_path / "set.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:4], y_test=LABELS[:4])
    dataset = load_dataset(tmp_path / "set.npz")
    assert (len(dataset.train), len(dataset.test), dataset.validation) == (8, 4, None)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": IMAGES}, "holds a: x_train, y_train"),
        ({"x": IMAGES, "y": LABELS[:3]}, "8 images but 3 labels"),
        ({"x": IMAGES, "y": LABELS * 0}, "one class only, '0'"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "is empty"),
        ({"x": IMAGES[..., :2], "y": LABELS}, r"shape \(8, 5, 6, 2\)"),
        ({"x": IMAGES * 1000.0, "y": LABELS}, "neither 0..1 nor 0..255"),
        ({"x": IMAGES * np.nan, "y": LABELS}, "neither 0..1 nor 0..255"),
        ({"x": IMAGES, "y": LABELS + 0.5}, "not one class each"),
        ({"x": IMAGES, "y": np.array([None, 1] * 4)}, "not a readable .npz file of plain arrays"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS + 1}, "the label '2'"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, 1:], "y_test": LABELS}, "differ in shape"),
    ],
)
def test_bad_npz(tmp_path, arrays, says):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UserError, match=says):
        load_dataset(tmp_path / "set.npz")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({}, "is empty: it holds no images"),
        ({"cat": 3}, "has one class only, 'cat'"),
        ({"train/cat": 3, "test/cat": 3}, "has one class only, 'cat'"),
        ({"train/cat": 2, "train/dog": 2, "test/cat": 2}, "differ between train and test: test lacks 'dog'"),
        ({"train/a": 1, "train/b": 1, "val/b": 1, "val/c": 1}, "lacks 'a'; validation has 'c', which train lacks"),
        ({"train/a": 1, "train/A": 1, "train/b": 1, "test/a": 1, "test/A": 1}, "test lacks 'b'"),
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/A": 1}, "'A', 'a' would all be 'a'"),
        ({"train/a": 1, "train/b": 1, "test": 3}, "test folder holds images but no class folders"),
        ({"a": 1, "b": 1}, "no class has more than one image"),
    ],
)
def test_bad_folders(tmp_path, write, layout, says):
    with pytest.raises(UserError, match=says):
        load_dataset(write(tmp_path, files_of(layout)))


def test_images_without_class_folders(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    with pytest.raises(UserError, match="no class folders"):
        load_dataset(tmp_path)


def test_bad_paths(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"flower does not exist; did you mean .*flowers\?"):
        load_dataset(tmp_path / "flower")
    with pytest.raises(UserError, match=r"nor does .*nowhere"):
        load_dataset(tmp_path / "nowhere" / "flowers")
    with pytest.raises(UserError, match=r"digit does not exist; did you mean digits\?"):
        load_dataset("digit")
    for name, content, says in (
        ("a.zip", b"", "is empty"),
        ("b.zip", b"no zip", "not a readable zip file"),
        ("c.tar.gz", b"no tar", "not a readable tar file"),
        ("d.npz", b"no npz", "not a readable .npz file"),
        ("e.txt", b"1,2", "of no kind that can be read; these are: digits,"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            load_dataset(tmp_path / name)


@pytest.mark.parametrize("name", ["../cat/0.png", "/cat/0.png", "cat/../../0.png", "..\\cat\\0.png", "C:\\cat\\0.png"])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_archives_that_climb_out_are_refused(tmp_path, write, name):
    with pytest.raises(UserError, match="climbs out"):
        load_dataset(write(tmp_path, files_of({"cat": 2, "dog": 2}) | {name: picture(0)}))


def test_a_tar_that_is_not_cifar(tmp_path):
    with pytest.raises(UserError, match="does not hold all the files of CIFAR"):
        load_dataset(write_tar(tmp_path, files_of({"cat": 2, "dog": 2})))
