"""Outputs that cannot be written, files that are written whole or not at all, and locks that a kill ends."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

from groupwise.cli import converting, explaining, exporting, main, processes, rewriting, using
from groupwise.errors import UserError
from groupwise.writing import check_file, check_folder, locked, make_folder, remove_empty, replace_file, write_text

pytestmark = pytest.mark.once
LONG = "n" * 300
LONGEST = "n" * 249 + ".keras"  # what ext4, APFS and NTFS take


@pytest.fixture
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command fail where it goes on to its work."""
    for module in (converting, explaining, exporting, rewriting, processes, using):
        monkeypatch.setattr(module, "settle_backend", pytest.fail)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is synced there")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted(name: str, function: Any) -> Any:
        def run(*given: Any) -> Any:
            seen.append(name)
            return function(*given)

        return run

    monkeypatch.setattr("os.fsync", noted("sync", sync))
    monkeypatch.setattr("os.replace", noted("name", replace))
    write_text(tmp_path / "file", "text")
    assert seen == ["sync", "name", "sync"]  # the last one is the folder's
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there, and other names are too long")
def test_what_cannot_be_written_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "at" / "all")
    places = [tmp_path / "file" / "x", tmp_path / LONG]
    if sys.platform == "linux":
        places.append(Path("/proc/x"))
    before = sorted(tmp_path.rglob("*"))
    for place in places:
        for check in (check_file, check_folder, lambda path: write_text(path, "x"), make_folder):
            with pytest.raises(UserError, match=r"is no folder|cannot be written: "):
                check(place)
    assert sorted(tmp_path.rglob("*")) == before
    for path, message in (
        (tmp_path, "is a folder; name a file"),
        (tmp_path / "none" / "x", "none: it does not exist; make it first"),
    ):
        with pytest.raises(UserError, match=message):
            check_file(path)
    with pytest.raises(UserError, match="file: is a file; name a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(UserError, match="gone"):
        check_folder(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot be written: is a directory"):
        write_text(tmp_path, "x")


def test_what_can_be_written_is_let_through(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "run")
    check_file(tmp_path / LONGEST)
    assert not list(tmp_path.iterdir())
    write_text(tmp_path / LONGEST, "whole")
    assert (tmp_path / LONGEST).read_text() == "whole"
    made = make_folder(tmp_path / "new" / "run")
    (tmp_path / "new" / "kept").touch()
    remove_empty(made)
    assert not (tmp_path / "new" / "run").exists()
    assert (tmp_path / "new").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere" / "file.json")
    check_file(link)
    write_text(link, "x")
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["file.json"]


def test_two_that_write_one_file_share_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.json"

    def write(partial: Path) -> None:
        partial.write_text("one")
        write_text(path, "two")
        assert partial.read_text() == "one"

    replace_file(path, write)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file.json", "one")]


def test_a_model_on_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(400)])
    path = tmp_path / "model.keras"
    path.write_text("of before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError, match=r"model.keras cannot be written: file too large"):
            replace_file(path, model.save)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("model.keras", "of before")]


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path, "busy"):
        with pytest.raises(UserError, match="busy"), locked(path, "busy"):
            pass
        assert path.exists()
    assert not path.exists()
    code = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from groupwise.writing import locked
with locked(Path({str(path)!r}), "busy"):
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert path.exists()
    with locked(path, "busy"):
        pass
    assert not path.exists()


@pytest.mark.parametrize(
    "command",
    [
        ("train", "digits"),
        ("train", "digits", "--resume"),
        ("evaluate", "m.keras", "digits"),
        ("convert", "package:none", "mnist_cnn"),
        ("accelerate", "m.keras"),
        ("factorize", "m.keras"),
        ("export", "m.keras"),
        ("explain", "shuffle"),
    ],
    ids=lambda command: "-".join(command),
)
def test_every_command_says_where_it_cannot_write_before_its_work(
    command: tuple[str, ...], no_backend: None, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "m.keras").write_text("no model; it is not looked at")
    is_file = command[0] in ("convert", "accelerate", "factorize", "export")
    ending = "" if not is_file else ".onnx" if command[0] == "export" else ".keras"
    outputs = ["", " ", f"file/x{ending}", f"{LONG}{ending}", "file"]
    if is_file:
        (tmp_path / f"folder{ending}").mkdir()
        outputs += [f"none/x{ending}", f"folder{ending}", "x.wrong"]
    else:
        outputs += ["new.keras", "confusion.png"]
    if sys.platform == "linux":
        outputs.append(f"/proc/x{ending}")
    before = sorted(tmp_path.rglob("*"))
    for output in outputs:
        assert main([*command, "--output", output]) == 2, output
        said, errors = capsys.readouterr()
        assert said == ""
        assert errors.startswith("groupwise: ")
        assert "output" in errors
        assert errors.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_is_not_overwritten_by_what_is_made_of_it(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "last.keras"
    path.write_text("a model")
    for source in (path, tmp_path / "run", "~/run/last.keras"):
        for command in ("accelerate", "factorize"):
            assert main([command, str(source), "--output", str(path)]) == 2
            assert "is the model that is read" in capsys.readouterr().err
    assert path.read_text() == "a model"


def test_pictures_that_cannot_be_written_stop_a_prediction_before_it_begins(
    no_backend: None, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.cam.png").mkdir()
    assert main(["predict", "m.keras", str(tmp_path / "a.png"), "--cam"]) == 2
    assert "a.cam.png: is a folder; name a file" in capsys.readouterr().err
    (tmp_path / "a.cam.png").rmdir()
    (tmp_path / "a.cam.png").touch()
    assert main(["predict", "m.keras", *(str(tmp_path / name) for name in ("a.png", "a.cam.png")), "--cam"]) == 2
    assert "a.cam.png would be drawn over" in capsys.readouterr().err
