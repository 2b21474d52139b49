"""No command tests on what was trained on, or takes one class for another, whatever happened to the data since."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from groupwise.cli.watching import ConsoleObserver
from groupwise.data import load_dataset
from groupwise.data.record import SplitRecord
from groupwise.inference import load_network
from groupwise.inference.recorded import read_record
from groupwise.training import make_plan, train
from tests import tiny as bars
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

pytestmark = pytest.mark.once

tiny = bars.tiny


def evaluated(capsys: Any, *arguments: object) -> tuple[dict[str, Any], str]:
    code, output, errors = run(capsys, "evaluate", *arguments, "--json")
    assert code == 0
    return json.loads(output), errors


def recorded(run_or_model: str) -> SplitRecord:
    record = read_record(run_or_model)
    assert record is not None
    return record


def test_a_run_keeps_its_split_when_the_data_grow(
    tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bars.write_classes(Path("photos"), range(20))
    settings = ("--model", tiny, "--recipe", "digits", "--batch-size", 8)
    assert run(capsys, "train", "photos", *settings, "--epochs", 2, "--seed", 3, "--output", "run")[0] == 0
    split = load_dataset("photos", seed=3)
    record = recorded("run")
    assert len(record.images["train"]) == len(split.train)
    assert SplitRecord.of(load_network("run/best.keras").metadata["split"], "", "").rule == record.rule
    result, errors = evaluated(capsys, "run", "photos")
    assert (result["images"], errors) == (len(split.test), "")

    bars.write_classes(Path("photos"), range(900, 905))
    grown = load_dataset("photos", seed=3)
    added = "groupwise: photos has changed since the model was trained: 15 images were added\n"
    load_network("run").save("last.h5")
    for model in ("run", "run/best.keras", "last.h5"):
        result, errors = evaluated(capsys, model, "photos")
        assert (result["images"], errors) == (len(grown.test), added)
    _, errors = evaluated(capsys, "run", "photos", "--all")
    assert f"{len(split.train)} of the 75 images that are tested on were trained on" in errors
    _, errors = evaluated(capsys, "run", "photos", "--seed", 4)
    assert "images that are tested on were trained on" in errors
    code, output, errors = run(capsys, "factorize", "run", "--data", "photos", "--output", "small.keras")
    assert (code, errors) == (0, added)
    assert recorded("small.keras").rule == record.rule

    code, output, _ = run(capsys, "train", "photos", "--output", "run", "--resume")
    assert code == 0
    announced = f"{len(split.train)} images to train on, {len(split.test)} to test on"
    assert " ".join(output.split()).index(announced) < output.index("15 images were added to photos since: left out")
    assert json.loads(Path("run/summary.json").read_text())["test_images"] == len(split.test)

    # Another run from these weights: the split stays theirs, unless another one is asked for, and is said to be wrong.
    begin = ("train", "photos", "--weights", "run", "--recipe", "digits", "--epochs", 1)
    code, output, _ = run(capsys, *begin, "--output", "second")
    assert (code, "were trained on" in output) == (0, False)
    assert f"{len(grown.train)} images to train on, {len(grown.test)} to test on" in output
    assert "images that are tested on were trained on" in run(capsys, *begin, "--seed", 5, "--output", "third")[1]
    assert np.isin(record.images["train"], recorded("third").trained).all()

    for damage in ("{", "[]", '{"rule": 0}'):
        Path("run/split.json").write_text(damage)
        for command in (("evaluate", "run", "photos"), ("train", "photos", "--output", "run", "--resume")):
            said = refusal(capsys, *command)
            assert f"{Path('run/split.json')}" in said
            assert "remove that file, since last.keras holds the record, too" in said
    Path("run/split.json").unlink()  # which is what it says
    assert recorded("run").rule == record.rule
    model = load_network("run")
    del model.metadata["split"]
    model.save("run/last.keras")
    _, errors = evaluated(capsys, "run", "photos")
    assert "run has no record of the images that it was trained on" in errors
    assert "cannot go on with them" in refusal(capsys, "train", "photos", "--output", "run", "--resume")


@pytest.mark.parametrize("cache", ["auto", False])
def test_a_run_goes_on_when_its_broken_images_are_repaired_or_removed(
    tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, cache: Any
) -> None:
    root = bars.write_classes(tmp_path / "photos", range(20))
    names = load_dataset(root).train.names
    if cache is False:
        monkeypatch.setattr("groupwise.data.samples.free_memory", lambda: 0)
    damaged = [root / names[place] for place in (1, len(names) // 2, len(names) - 1)]
    whole = damaged[0].read_bytes()
    for path in damaged:
        path.write_bytes(whole[:40])
    settings = ("--model", tiny, "--recipe", "digits", "--batch-size", len(names) // 6, "--epochs", 1)
    assert run(capsys, "train", root, *settings, "--output", tmp_path / "run")[0] == 0
    record = recorded(str(tmp_path / "run"))
    assert (len(record.trained), len(record.unread)) == (len(names) - 3, 3)
    model = load_network(tmp_path / "run/last.keras")
    assert SplitRecord.of(model.metadata["split"], "", "").as_dict() == record.as_dict()
    damaged[0].write_bytes(whole)
    damaged[1].unlink()
    for epochs in (2, 3):
        resume = ("train", root, "--output", tmp_path / "run", "--resume", "--epochs", epochs)
        assert run(capsys, *resume)[0] == 0
        assert recorded(str(tmp_path / "run")).as_dict() == record.as_dict()


def test_a_resumed_run_finds_its_classes_by_name(tiny: str, tmp_path: Path, capsys: Any) -> None:
    root = bars.write_classes(tmp_path / "photos", range(10))
    plan = make_plan(load_dataset(root), "photos", bars.recipe(epochs=1))
    train(plan, load_dataset(root), tmp_path / "run", observer=ConsoleObserver(Console(quiet=True)))
    before, _ = evaluated(capsys, tmp_path / "run", root)
    (root / "slant").rename(root / "SLANT")  # which comes first now
    assert load_dataset(root).class_names == ("SLANT", "across", "down")
    after, errors = evaluated(capsys, tmp_path / "run", root)
    assert after["confusion"] == before["confusion"]
    assert errors == "groupwise: the class 'SLANT' is the model's 'slant'\n"
    assert run(capsys, "train", root, "--output", tmp_path / "run", "--resume")[0] == 0
    bars.write_classes(root, range(2), ("new",))
    assert "'new' is new" in refusal(capsys, "train", root, "--output", tmp_path / "run", "--resume")
    shutil.rmtree(root / "new")
    shutil.rmtree(root / "down")
    assert "it lacks 'down'" in refusal(capsys, "train", root, "--output", tmp_path / "run", "--resume")
    assert evaluated(capsys, tmp_path / "run", root)[1].startswith("groupwise: photos has changed")


def test_colour_and_grey_meet(tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network for grey images takes colour ones, and says what they show."""
    monkeypatch.chdir(tmp_path)
    root = bars.write_folder(tmp_path / "bars", train=30, test=6)
    assert run(capsys, "train", "bars", "--model", "tiny", "--recipe", "digits", "--epochs", "1")[0] == 0
    for file in root.rglob("*.png"):
        Image.open(file).convert("RGB").save(file)
    assert run(capsys, "evaluate", "runs/bars-tiny", "bars", "--all")[0] == 0
