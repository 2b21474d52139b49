"""What lies beside the images and is not read is ignored, said, or refused where a class or a split would be gone."""

import re

import pytest

from groupwise.data import load_dataset
from groupwise.errors import UserError
from tests.test_data_sources import WRITERS, files_of, picture, write_folder, write_zip

pytestmark = pytest.mark.once


@pytest.mark.parametrize("write", WRITERS)
def test_what_systems_leave_behind_is_ignored(tmp_path, write):
    junk = dict.fromkeys(("__MACOSX/set/cat/._0.png", "set/cat/.DS_Store", "set/cat/Thumbs.db", "set/README"), b"x")
    junk |= {"set/.hidden/0.png": b"x", "set/cat/._1.png": b"x", "set/sample.png": picture(0)}
    dataset = load_dataset(write(tmp_path, files_of({"set/cat": 2, "set/dog": 2}) | junk))
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.train) + len(dataset.test) == 4


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize("write", WRITERS)
def test_a_picture_of_another_name_is_read(tmp_path, write):
    """Without an ending, with one that names no kind, or with that of a kind which is not read."""
    names = ("1.HEIC", "2", "3.0007", "4.png?width=20", "5.JPG", "6.heif")
    files = {f"{folder}/{name}": picture(n) for folder in ("cat", "dog") for n, name in enumerate(names)}
    dataset = load_dataset(write(tmp_path, files), test_fraction=1.0)
    assert [name.split("/")[1] for name in dataset.test.names] == [*names, *names]
    assert dataset.notes == ()
    assert [dataset.test.read(index)[0, 0, 0] for index in range(6)] == list(range(6))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"ant/1.heic": HEIC, "ant/2.HEIC": HEIC}, r"2 \.heic in 'ant' \(of 2 files\): convert them to JPEG or PNG"),
        ({"ant/1": b"?", "ant/2": b"?"}, r"2 without an ending in 'ant' \(of 2 files\)"),
        ({"ant/clip.mov": b"?"}, r"1 \.mov in 'ant'"),
        (
            {"cat/a.heic": HEIC, "cat/b.CR2": HEIC, "cat/c": b"?"},
            r"1 \.cr2, 1 \.heic, 1 without .* in 'cat' \(of 11 files\)",
        ),
        ({"cat/deep/a.heic": HEIC, "cat/deep/b.heic": HEIC}, r"2 \.heic in 'cat' \(of 10 files\)"),
        ({"ant/x/y/1.heic": HEIC}, r"1 \.heic in 'ant'"),
        ({f"class{n}/1.heic": HEIC for n in range(7)}, "'class4'.*; and more in 2 other folders"),
    ],
)
def test_classes_that_cannot_be_read_are_named(tmp_path, write, others, says):
    with pytest.raises(UserError, match=f"too much cannot be read: .*{says}"):
        load_dataset(write(tmp_path, files_of({"cat": 8, "dog": 8}) | others))


@pytest.mark.parametrize(
    ("layout", "others", "says"),
    [
        ({"train/cat": 3, "test/cat": 3, "test/dog": 3}, {"train/dog/1.heic": HEIC}, "1 .heic in 'train/dog'"),
        ({"test/cat": 3, "test/dog": 3}, {f"train/cat/{n}.heic": HEIC for n in range(9)}, "9 .heic in 'train' (of 9"),
        ({"train/cat": 3, "train/dog": 3}, {f"test/{c}/1.npy": b"?" for c in ("cat", "dog")}, "2 .npy in 'test' (of 2"),
        ({"x/train/cat": 3, "x/train/dog": 3}, {"x/test/cat/1.mp4": b"?"}, "1 .mp4 in 'x/test' (of 1"),
        ({f"{r}/{c}": 3 for r in ("train", "test") for c in "ab"}, {"val/a/1.heic": HEIC}, "1 .heic in 'val' (of 1"),
        ({f"{c}/train": 3 for c in "ab"}, {f"{c}/test/1.npy": b"?" for c in "ab"}, "1 .npy in 'a/test' (of 1"),
        ({}, {"cat/1.heic": HEIC, "cat/2.heic": HEIC}, "holds no images that can be read, but 2 .heic: convert"),
    ],
)
def test_splits_that_cannot_be_read_are_named(tmp_path, layout, others, says):
    with pytest.raises(UserError, match=re.escape(says)):
        load_dataset(write_folder(tmp_path, files_of(layout) | others))


@pytest.mark.parametrize(
    ("others", "note"),
    [
        (
            {"cat/odd.heic": HEIC, "dog/clip.mov": b"?"},
            "since they cannot be read: 1 .heic in 'cat' (of 9 files); 1 .mov in",
        ),
        ({f"cat/{n}.cr2": HEIC for n in range(8)}, "8 .cr2 in 'cat' (of 16 files)"),  # beside the JPEG of each
        (
            {"annotations/1.xml": b"<a>", "README": b"?", "cat/labels.txt": b"?"},
            "read: 1 .xml in 'annotations' (of 1 files)",
        ),
        ({"cat/0.cam.png": picture(1)}, "1 .png in 'cat'"),
        ({"test/labels.csv": b"?"}, "read: 1 .csv in 'test'"),
        ({"sample.png": picture(1)}, "since in no class's folder: 1 .png"),
        ({"README.md": b"?", "cat/0.txt": b"?", "@eaDir/cat/0.jpg": picture(0), "cat/desktop.ini": b"?"}, None),
    ],
)
def test_what_is_left_out_is_said(tmp_path, others, note):
    dataset = load_dataset(write_folder(tmp_path, files_of({"cat": 8, "dog": 8}) | others))
    assert len(dataset.train) + len(dataset.test) == 16
    assert (note is None and not dataset.notes) or (len(dataset.notes) == 1 and note in dataset.notes[0])


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("layout", "others", "named"),
    [
        ({"cat": 2, "dog": 2}, ("owl/",), "'owl'"),
        ({"x/cat": 2, "x/dog": 2}, ("x/owl/", "x/emu/", "x/emu/.hidden"), "'x/emu', 'x/owl'"),
        ({"train/cat": 2, "train/dog": 2}, ("test/", "test/cat/", "test/dog/"), "'test'"),
        ({"cat": 2, "dog": 2}, ("cat/", "cat/deep/", ".git/", "__MACOSX/"), None),
    ],
)
def test_empty_folders_are_named(tmp_path, write, layout, others, named):
    files = files_of(layout) | {name: b"" for name in others if not name.endswith("/")}
    if write is write_zip:
        source = write(tmp_path, files | dict.fromkeys(others, b""))
    else:
        source = write(tmp_path / "set", files)
        for name in others:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                (source / name).mkdir(exist_ok=True)
    notes = load_dataset(source).notes
    assert notes == ((f"{source.name}: left out, since empty: {named}",) if named else ())
