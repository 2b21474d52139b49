"""Data sets as they are published, and lists of paths and labels: each recognised by what lies in the folder."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from groupwise.data import Dataset, Split, load_dataset
from groupwise.data.matlab import read_mat
from groupwise.errors import UserError

pytestmark = pytest.mark.once
WORDNET = ("n01440764", "n01443537", "n02084071")


def jpeg(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(file, "JPEG", quality=100, subsampling=0)
    return file.getvalue()


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def tar_of(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def mat_of(**arrays: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, arrays, do_compression=True)
    return file.getvalue()


def seen(split: Split | None, dataset: Dataset) -> list[tuple[str, int]]:
    """The class and the red value, by tens, of each image."""
    assert split is not None
    values = (round(split.read(index)[0, 0, 0] / 10) for index in range(len(split)))
    return [(dataset.class_names[label], value) for label, value in zip(split.labels, values, strict=True)]


FILES = {f"photos/{number}.jpg": jpeg(10 * number) for number in range(8)}
CSV = "label,Path,split\n" + "".join(f"{'ab'[n % 2]},photos/{n}.jpg,{'val' if n > 5 else 'train'}\n" for n in range(8))
JSONL = "\n".join(json.dumps({"file_name": f"photos/{n}.jpg", "label": n % 2}) for n in range(8))


def test_a_csv_with_a_header_lists_paths_labels_and_splits(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, {**FILES, "set.csv": "\ufeff" + CSV}) / "set.csv")
    assert (dataset.name, dataset.class_names, dataset.image_size) == ("set.csv", ("a", "b"), (6, 8))
    assert seen(dataset.train, dataset) == [("ab"[n % 2], n) for n in range(6)]
    assert seen(dataset.test, dataset) == [("a", 6), ("b", 7)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.csv", "".join(f"photos/{n}.jpg,{'ab'[n % 2]}\n" for n in range(8))),
        ("set.tsv", "photos/0.jpg\ta\nphotos/1.jpg\tb\n\nphotos/2.jpg\ta\nphotos/3.jpg\tb\n"),
        ("set.jsonl", JSONL),
        ("set.ndjson", JSONL + "\n\n"),
    ],
)
def test_lists_of_other_forms(name: str, content: str, tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, {**FILES, name: content}) / name)
    assert dataset.undivided is not None
    assert len(dataset.class_names) == 2
    found = seen(dataset.undivided, dataset)
    assert [value for _, value in found] == list(range(len(found)))
    assert [label for label, _ in found] == [dataset.class_names[n % 2] for n in range(len(found))]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "path,label\nphotos/1.jpg\n", "a.csv: row 1 has no label, by none of the names label, class"),
        ("a.csv", "path,label,split\nx.jpg,a,left\n", ".left. is no split: train, validation and test are"),
        ("a.csv", "1\n", "does not begin with a path and a label"),
        ("a.csv", "path,label\nx.jpg,a\n", "has one class only"),
        ("a.csv", "path,label\n", "names no images to train on"),
        ("a.jsonl", '{"path": "x"', "line 1 is no JSON"),
        ("a.jsonl", "[1]", "line 1 is no object"),
    ],
)
def test_a_list_that_cannot_be_is_refused(name: str, content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        load_dataset(write(tmp_path, {name: content}) / name)


def test_a_listed_file_that_is_not_there_is_a_broken_image(tmp_path: Path) -> None:
    files = {**FILES, "set.csv": "path,label\nphotos/1.jpg,a\ngone.jpg,b\n"}
    dataset = load_dataset(write(tmp_path, files) / "set.csv", test_fraction=1.0)
    with pytest.raises(UserError, match=r"gone\.jpg: no such file"):
        dataset.test.read(1)


def test_food(tmp_path: Path) -> None:
    images = {f"images/{kind}/{n}.jpg": jpeg(10 * n) for kind in ("apple_pie", "sushi") for n in range(4)}
    lists = {"train": [0, 2, 3], "test": [1]}
    texts = {
        f"meta/{role}.txt": "".join(f"{kind}/{n}\n" for kind in ("apple_pie", "sushi") for n in numbers)
        for role, numbers in lists.items()
    }
    dataset = load_dataset(write(tmp_path / "food-101", {**images, **texts}))
    assert (dataset.name, dataset.class_names) == ("food-101", ("apple_pie", "sushi"))
    assert seen(dataset.train, dataset) == [(kind, n) for kind in ("apple_pie", "sushi") for n in (0, 2, 3)]
    assert seen(dataset.test, dataset) == [("apple_pie", 1), ("sushi", 1)]


def test_flowers_also_one_folder_deeper(tmp_path: Path) -> None:
    files = {
        **{f"jpg/image_{n:05}.jpg": jpeg(10 * n) for n in range(1, 9)},
        "imagelabels.mat": mat_of(labels=np.array([[1, 1, 1, 1, 102, 102, 102, 102]], np.uint8)),
        "setid.mat": mat_of(trnid=[[1, 5]], valid=[[2, 6]], tstid=[[3, 4, 7, 8]]),
    }
    write(tmp_path / "outer" / "flowers", files)
    dataset = load_dataset(tmp_path / "outer")
    assert dataset.class_names == ("001", "102")
    assert seen(dataset.train, dataset) == [("001", 1), ("102", 5)]
    assert seen(dataset.validation, dataset) == [("001", 2), ("102", 6)]
    assert seen(dataset.test, dataset) == [("001", 3), ("001", 4), ("102", 7), ("102", 8)]


def test_street_numbers(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), np.uint8)
    digits = np.arange(1, 21)[:, None] % 10
    content = mat_of(X=pixels, y=np.where(digits == 0, 10, digits).astype(np.uint8))
    dataset = load_dataset(write(tmp_path, {"train_32x32.mat": content, "test_32x32.mat": content}))
    assert (dataset.class_names, dataset.image_size) == (tuple("0123456789"), (32, 32))
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == digits.ravel().tolist()
    np.testing.assert_array_equal(dataset.train.read(3), pixels[..., 3])


def test_fashion_mnist(tmp_path: Path) -> None:
    pixels, labels = np.arange(20 * 784, dtype=np.uint32).astype(np.uint8).reshape(20, 28, 28), np.arange(20) % 10
    for file in ("train", "t10k"):
        images = struct.pack(">HBB3I", 0, 8, 3, *pixels.shape) + pixels.tobytes()
        classes = struct.pack(">HBBI", 0, 8, 1, 20) + labels.astype(np.uint8).tobytes()
        write(tmp_path, {f"{file}-images-idx3-ubyte.gz": gzip.compress(images)})
        write(tmp_path, {f"{file}-labels-idx1-ubyte.gz": gzip.compress(classes)})
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.test), dataset.channels) == (20, 20, 1)
    np.testing.assert_array_equal(dataset.test.read(7)[..., 0], pixels[7])


TRAIN = {f"{kind}/{kind}_{n}.JPEG": jpeg(10 * n) for kind in WORDNET for n in range(3)}
VALIDATION = {f"ILSVRC2012_val_{n:08}.JPEG": jpeg(10 * n) for n in range(1, 7)}
TRUTH = [3, 1, 2, 2, 1, 3]  # the development kit's own numbers, which are not in the order of the WordNet ids
NUMBERED = {1: WORDNET[1], 2: WORDNET[2], 3: WORDNET[0]}


def development_kit() -> dict[str, bytes | str]:
    synsets = np.empty((4, 1), [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words")])
    for place, (number, kind) in enumerate({**NUMBERED, 4: "n99999999"}.items()):
        synsets[place, 0] = (float(number), kind, f"the {number}th, by name")
    folder = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{number}\n" for number in TRUTH)
    return {f"{folder}/meta.mat": mat_of(synsets=synsets), f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth}


def kaggle() -> dict[str, bytes | str]:
    rows = (f"ILSVRC2012_val_{n:08},{NUMBERED[label]} 85 1 499 272\n" for n, label in enumerate(TRUTH, 1))
    images = "ILSVRC/Data/CLS-LOC"
    return {
        "LOC_val_solution.csv": "ImageId,PredictionString\n" + "".join(rows),
        **{f"{images}/train/{name}": content for name, content in TRAIN.items()},
        **{f"{images}/val/{name}": content for name, content in VALIDATION.items()},
        f"{images}/test/ILSVRC2012_test_00000001.JPEG": jpeg(0),
    }


def tars() -> dict[str, bytes | str]:
    inner = {
        f"{kind}.tar": tar_of({name.split("/")[1]: content for name, content in TRAIN.items() if name.startswith(kind)})
        for kind in WORDNET
    }
    return {
        **development_kit(),
        "ILSVRC2012_img_train.tar": tar_of(inner),
        "ILSVRC2012_img_val.tar": tar_of(VALIDATION),
    }


def unpacked() -> dict[str, bytes | str]:
    train = {f"train/{name}": content for name, content in TRAIN.items()}
    return {**development_kit(), **train, **{f"val/{name}": content for name, content in VALIDATION.items()}}


@pytest.mark.parametrize("layout", [kaggle, tars, unpacked])
def test_imagenet(layout: Any, tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path / "imagenet", layout()))
    assert (dataset.class_names, dataset.undivided) == (WORDNET, None)
    assert seen(dataset.train, dataset) == [(kind, n) for kind in WORDNET for n in range(3)]
    assert seen(dataset.test, dataset) == [(NUMBERED[label], n) for n, label in enumerate(TRUTH, 1)]
    assert dataset.train.names[0] == "train/n01440764/n01440764_0.JPEG"


def test_imagenet_looks_alike_however_it_is_laid_out(tmp_path: Path) -> None:
    """A run can go on with the same images in another layout: they are known by class and name."""
    identities = [
        np.concatenate([split.identities() for split in (dataset.train, dataset.test)])
        for layout in (kaggle, tars, unpacked)
        for dataset in [load_dataset(write(tmp_path / layout.__name__, layout()))]
    ]
    np.testing.assert_array_equal(identities[0], identities[1])
    np.testing.assert_array_equal(identities[0], identities[2])


def test_imagenet_without_its_ground_truth_says_what_lacks(tmp_path: Path) -> None:
    files = {name: content for name, content in unpacked().items() if "devkit" not in name}
    with pytest.raises(UserError, match="unpack the development kit into it, which has ILSVRC2012_validation_ground"):
        load_dataset(write(tmp_path, files))


@pytest.mark.parametrize("compress", [True, False])
def test_matlab_arrays_are_those_that_were_written(compress: bool, tmp_path: Path) -> None:
    arrays = {
        "doubles": np.random.default_rng(0).normal(size=(3, 4)),
        "whole": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
        "text": np.array(["of several letters"]),
        "a": np.array([[7]], np.uint8),
    }
    savemat(tmp_path / "a.mat", {**arrays, "left_out": 1 + 1j}, do_compression=compress)
    found = read_mat(tmp_path / "a.mat")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_damaged_matlab_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    content = mat_of(x=np.random.default_rng(0).normal(size=(30, 40)))
    path = tmp_path / "a.mat"
    for damaged in (b"", content[:140], content[:-100], content[:200] + bytes(60) + content[260:], b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a readable MATLAB file"):
            read_mat(path)
