"""`groupwise predict`: which files it takes, what it says of the others, and which classes it names."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from groupwise import models
from groupwise.cli import main
from groupwise.cli.console import note
from groupwise.cli.options import option
from groupwise.data.files import files_in_folder
from groupwise.data.image_paths import image_paths
from groupwise.errors import UserError, naming
from groupwise.weights import distinct_names, imagenet_classes, wordnet_ids
from tests import tiny as bars

tiny = bars.tiny
KINDS = {
    **dict.fromkeys(("jpg", "JPEG", "jpe", "jfif"), "JPEG"),
    "png": "PNG",
    "bmp": "BMP",
    "gif": "GIF",
    "webp": "WEBP",
    "TIF": "TIFF",
    "pbm": "PPM",
    "pgm": "PPM",
    "jp2": "JPEG2000",
    "tga": "TGA",
    "avif": "AVIF",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*names: str, kind: str = "PNG") -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("1" if name.endswith("pbm") else "L", (8, 8), 1).save(path, kind)


def names(*given: str, recursive: bool = False) -> list[str]:
    with naming(option):
        return [path.as_posix() for path in image_paths(given, recursive, note)]


@pytest.mark.once
def test_of_a_folder_the_images_are_taken_that_training_reads(folder: Path, capsys: Any) -> None:
    Image.init()
    written = {
        f"{number:02}.{ending}": kind for number, (ending, kind) in enumerate(KINDS.items()) if kind in Image.SAVE
    }
    for name, kind in written.items():
        write(f"photos/{name}", kind=kind)
    write("photos/98", "photos/99.HEIC")
    for name in (
        "._00.jpg",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "00.cam.png",
        "__MACOSX/._a.jpg",
        ".thumbs/a.png",
    ):
        path = Path("photos", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    expected = [f"photos/{name}" for name in [*written, "98", "99.HEIC"]]
    assert names("photos") == expected == [f"photos/{name}" for name in files_in_folder(Path("photos")).names]
    assert capsys.readouterr().err == ""


@pytest.mark.once
def test_folders_below_are_looked_into_if_asked(folder: Path, capsys: Any) -> None:
    write("a/2.png", "a/10.png", "a/b/1.png", "a/c/d/0.png", "x.png")
    assert names("x.png", "a") == ["x.png", "a/10.png", "a/2.png"]
    assert capsys.readouterr().err == "groupwise: a: 2 folders in it left out: add --recursive to look into them\n"
    assert names("a", recursive=True) == ["a/10.png", "a/2.png", "a/b/1.png", "a/c/d/0.png"]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="a/c holds no images itself, but 1 folder: add --recursive"):
        names("a/c")


@pytest.mark.once
def test_what_cannot_be_taken_is_said(folder: Path, capsys: Any) -> None:
    write("a/1.png", "b[1].png", "c/._x.png")
    for name in ("a/2.heic", "a/3.mov", "d/1.heic", "photos.zip"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"?")
    assert names("a") == ["a/1.png"]
    assert capsys.readouterr().err == "groupwise: a: left out, since they cannot be read: 1 .heic, 1 .mov\n"
    assert names("b[1].png", "a/*.png", "*/?.png") == ["b[1].png", "a/1.png", "a/1.png"]
    for name, says in (
        ("c", "c is empty: it holds no images"),
        ("d", r"d holds no images that can be read, but 1 \.heic: convert"),
        ("photos.zip", "photos.zip is an archive: unpack it"),
        ("*.jpg", r"\*.jpg: no file has such a name"),
        ("?", r"\? matches folders"),
        ("e.png", "e.png does not exist"),
    ):
        with pytest.raises(UserError, match=says):
            names(name)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no named pipes among files, and links need a privilege")
def test_the_classes_are_named_and_numbered(tiny: str, folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    network = models.create("tiny")
    network.metadata["class_names"] = ["crane", "n01443537", "crane"]
    network.save("m.keras")
    write("a/1.png")
    os.mkfifo("a/2.png")
    Path("a/3.png").symlink_to("nowhere")
    assert main(["predict", "m.keras", "a", "--json"]) == 0
    output, errors = capsys.readouterr()
    assert errors.splitlines() == [
        "groupwise: skipped a/2.png: no regular file",
        "groupwise: skipped a/3.png: no such file or directory",
    ]
    (result,) = json.loads(output)
    assert result["image"] == "a/1.png"
    known = {guess["index"]: (guess["class"], guess["wordnet_id"]) for guess in result["top"]}
    assert known == {0: ("crane", None), 1: ("n01443537", "n01443537"), 2: ("crane", None)}
    assert main(["predict", "m.keras", "a/1.png"]) == 0
    assert "crane (2)" in capsys.readouterr().out
    assert main(["predict", "m.keras", "a/1.png", "--cam", "--cam-class", "crane"]) == 2
    assert "--cam-class crane: 2 classes have this name; say which one: 0 or 2" in capsys.readouterr().err
    assert main(["predict", "m.keras", "a/1.png", "--cam", "--cam-class", "2"]) == 0
    assert Path("a/1.cam.png").exists()


@pytest.mark.once
@pytest.mark.parametrize(
    "renamed",
    [str, lambda name: name.split(" (")[0], lambda name: name.replace(" ", "_"), lambda name: f"{name}, Latin"],
)
def test_imagenets_classes_have_their_ids_whatever_their_names(renamed: Any) -> None:
    names = [renamed(name) for name in imagenet_classes().values()]
    assert wordnet_ids(names) == list(imagenet_classes())
    assert len(set(distinct_names(names))) == 1000
    others: Sequence[str] = names[::-1]
    assert set(wordnet_ids(others)) == {None}


def test_a_table_has_a_row_for_each_guess(tiny: str, folder: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    network = models.create("tiny")
    network.metadata["class_names"] = ['a "quoted", name', "n01443537", "crane"]
    network.save("m.keras")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8)).astype(np.uint8)
    for name, image in zip(("a.png", "b c.png"), pixels, strict=True):
        Image.fromarray(image).save(name)
    assert main(["predict", "m.keras", "a.png", "b c.png", "--csv", "guesses.csv"]) == 0
    assert capsys.readouterr().out == "2 images in guesses.csv\n"
    text = Path("guesses.csv").read_bytes().decode()
    head, *rows = csv.reader(io.StringIO(text))
    assert head == ["image", "rank", "index", "class", "wordnet_id", "probability"]

    mean, std = (np.float64(network.metadata["preprocessing"][name][0]) for name in ("mean", "std"))
    logits = np.asarray(network.predict_on_batch(((pixels[..., None] / 255 - mean) / std).astype("float32")), float)
    exponentials = np.exp(logits)
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    places = np.argsort(-expected, axis=1)
    assert [row[:3] for row in rows] == [
        [name, str(rank + 1), str(places[image, rank])]
        for image, name in enumerate(("a.png", "b c.png"))
        for rank in range(3)
    ]
    np.testing.assert_allclose([float(row[5]) for row in rows], np.take_along_axis(expected, places, 1).ravel(), 1e-4)
    named = {row[2]: (row[3], row[4]) for row in rows}
    assert named == {"0": ('a "quoted", name', ""), "1": ("n01443537", "n01443537"), "2": ("crane", "")}

    assert main(["predict", "m.keras", "a.png", "b c.png", "--csv", "-"]) == 0
    assert capsys.readouterr().out == text
    assert main(["predict", "m.keras", "a.png", "--csv", "one.csv", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert Path("one.csv").read_text().count("\n") == 4
    network.metadata["class_names"] = ["a", "b", "c"]
    network.save("m.keras")
    assert main(["predict", "m.keras", "a.png", "--csv", "-"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "image,rank,index,class,probability"


@pytest.mark.once
@pytest.mark.parametrize(
    "listed", [b"a/1.png\r\nb c.png\n\n a\n", b"\xef\xbb\xbfa/1.png\nb c.png\n a", b"a/1.png\0b c.png\0 a\0"]
)
def test_names_come_from_a_file(tiny: str, folder: Path, listed: bytes, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    network = models.create("tiny")
    network.metadata["class_names"] = ["a", "b", "c"]
    network.save("m.keras")
    write("a/1.png", "b c.png", " a/2.png", "x.png")
    Path("names.txt").write_bytes(listed)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    for file in ("names.txt", "-"):
        assert main(["predict", "m.keras", "x.png", "--from", file, "--json"]) == 0
        output, errors = capsys.readouterr()
        assert errors == ""
        found = [Path(result["image"]).as_posix() for result in json.loads(output)]
        assert found == ["x.png", "a/1.png", "b c.png", " a/2.png"]


@pytest.mark.once
def test_what_predict_refuses_before_it_reads_a_network(folder: Path, capsys: Any) -> None:
    write("a.png")
    Path("empty.txt").write_bytes(b"\n \r\n")
    Path("gone.txt").write_bytes(b"b.png\n")
    for arguments, says in (
        ([], "no image is named: name files, folders or patterns, or a file of names with --from"),
        (["--from", "no.txt"], "--from no.txt: no such file or directory"),
        (["--from", "empty.txt"], "--from empty.txt: holds no names; write the name of an image on each line"),
        (["--from", "gone.txt"], "b.png does not exist"),
        (["a.png", "--csv", "-", "--json"], "--csv -: is printed where --json prints; name a file, or leave one of"),
        (["a.png", "--csv", "."], "--csv .: is a folder; name a file"),
        (["a.png", "--csv", "no/x.csv"], "--csv no/x.csv: there is no folder no: it does not exist; make it first"),
    ):
        assert main(["predict", "nowhere.keras", *arguments]) == 2
        assert capsys.readouterr().err.startswith(f"groupwise: {says}")
