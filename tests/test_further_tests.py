"""Further data that the best model is tested on at the end of a training: all of it that was not trained on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groupwise.cli.options import parse_test
from groupwise.data import load_dataset
from groupwise.data.record import record_of
from groupwise.errors import UserError
from groupwise.inference import load_network
from groupwise.training import make_plan, read_plan, train
from groupwise.training.events import Finished
from groupwise.training.testing import settle_tests
from tests import tiny as bars
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny


def accuracy_by_hand(model: Path, *files: Path) -> float:
    """Return the accuracy of a model on all images of some .npz files, whose classes are its own."""
    network = load_network(model)
    mean, std = (np.float32(network.metadata["preprocessing"][name]) for name in ("mean", "std"))
    arrays = [np.load(file) for file in files]
    images, labels = (
        np.concatenate([pairs[name] for pairs in arrays for name in pairs if name.startswith(letter)])
        for letter in ("x", "y")
    )
    logits = network.predict((images[..., None] / np.float32(255) - mean) / std, verbose=0)
    return float((logits.argmax(axis=1) == labels).mean())


def test_the_best_model_is_tested_on_all_images(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    images, labels = bars.bars(50, seed=7)
    images[::3] = 255 - images[::3]  # that some may be wrong
    night, two, folder = tmp_path / "night.npz", tmp_path / "two.npz", tmp_path / "run"
    np.savez(night, x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    np.savez(two, x=images[labels > 0], y=labels[labels > 0])
    files = {"night": night, "two of three": two}
    plan = make_plan(dataset, "bars.npz", bars.recipe(epochs=2, average=0.9), tests={"night": str(night)})
    events: list[Any] = []
    tests = {name: load_dataset(file) for name, file in files.items()}
    found = train(plan, dataset, folder, observer=events.append, tests=tests).tests
    assert {name: test.images for name, test in found.items()} == {"night": 50, "two of three": (labels > 0).sum()}
    for name, test in found.items():
        assert test.accuracy == pytest.approx(accuracy_by_hand(folder / "best.keras", files[name]))
    (finished,) = (event for event in events if isinstance(event, Finished))
    assert f"best.keras on night: accuracy {found['night'].accuracy:.2%} of 50 images" in str(finished)
    assert json.loads(json.dumps(finished.as_dict()))["tests"]["night"]["images"] == 50

    # It is best.keras that is tested, whatever the last one is, and a run that goes on knows on what.
    other = load_network(folder / "best.keras")
    head = other.get_layer("head")
    head.set_weights([value[..., [1, 2, 0]] for value in head.get_weights()])
    other.save(folder / "best.keras")
    again = train(read_plan(folder), dataset, folder, resume=True, observer=[]).tests
    assert list(again) == ["night"]
    by_hand = accuracy_by_hand(folder / "best.keras", night)
    assert again["night"].accuracy == pytest.approx(by_hand)
    assert by_hand != pytest.approx(found["night"].accuracy)
    assert json.loads((folder / "summary.json").read_text())["tests"]["night"]["accuracy"] == again["night"].accuracy


@pytest.mark.once
def test_the_command_leaves_out_what_was_trained_on(
    tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bars.write_classes(Path("photos"), range(10))
    bars.write_classes(Path("more"), range(5, 15), ("Across", "down"))  # half of them of photos/, to the pixel
    bars.write_classes(Path("runs/a=b"), range(20, 25))
    shutil.copy(Path("runs/a=b/down/020.png"), Path("more/down/900.png"))  # of a name of its own
    Path("more/down/901.png").write_bytes(b"no image")
    settings = ("train", "photos", "--model", tiny, "--recipe", "digits", "--epochs", 1, "--batch-size", 64)
    named = ("--test", "night=more", "--test", "runs/a=b")
    trained = {name for name in load_dataset("photos").train.names if int(name[-7:-4]) >= 5 and "slant" not in name}
    left = f"night: {22 - len(trained)} images to test the best model on, without the {len(trained)} that are trained"
    for more in (("--dry-run",), ("--output", "run")):
        code, output, _ = run(capsys, *settings, *named, *more)
        assert code == 0
        assert left in output
        assert "night: the class 'Across' is the model's 'across'" in output
        assert "a=b: 15 images to test the best model on\n" in output
    assert "  night: down/901.png: " in output
    assert f"best.keras on night: accuracy {accuracy('night'):.2%} of {21 - len(trained)} images" in output

    resume = ("train", "photos", "--output", "run", "--resume")
    assert run(capsys, *resume)[0] == 0
    assert list(summary()["tests"]) == ["night", "a=b"]
    assert run(capsys, *resume, "--test", "more")[0] == 0
    assert list(summary()["tests"]) == ["more"]
    shutil.rmtree("more")
    assert "--test more: more does not exist" in refusal(capsys, *resume)  # which it was to be tested on
    for given, says in (
        (("--test", "nowhere"), "--test nowhere: nowhere does not exist"),
        (("--test", "photos", "--test", "photos=runs/a=b"), "--test photos=runs/a=b: photos is called photos, too"),
        (("--test", "night="), "--test night=: must be DATA or NAME=DATA"),
        (("--test", "x=digits"), "--test x: digits has classes that the model does not know: '0', '1'"),
    ):
        assert says in refusal(capsys, *settings, *given, "--output", "another")
        assert not Path("another").exists()


def summary() -> Any:
    return json.loads(Path("run/summary.json").read_text())


def accuracy(name: str) -> float:
    return float(summary()["tests"][name]["accuracy"])


@pytest.mark.once
def test_images_of_one_name_and_size_are_compared(tmp_path: Path) -> None:
    """Of a copy of the training images nothing is left; of others that are known by the same, all."""
    dataset = bars.dataset(tmp_path)
    train, record = dataset.train, record_of(dataset)
    copy = replace(dataset, test=train)
    with pytest.raises(UserError, match="tests=copy: all of its 192 images are trained on"):
        settle_tests({"copy": copy}, dataset.class_names, train, record)
    other = replace(train, reader=lambda index, side: train.read(index) ^ np.uint8(1))
    _, said = settle_tests({"other": replace(dataset, test=other)}, dataset.class_names, train, record)
    assert said == ["other: 96 images to test the best model on, without the 96 that are trained on"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("photos", (None, "photos")),
        ("night=photos", ("night", "photos")),
        ("v1.2-b=a=b/c", ("v1.2-b", "a=b/c")),
        ("runs/a=b", (None, "runs/a=b")),
        ("./a=b", (None, "./a=b")),
        ("~/a=b", (None, "~/a=b")),
        ("s3://photos/day=1", (None, "s3://photos/day=1")),
        ("=photos", (None, "=photos")),
    ],
)
def test_a_name_is_a_word(text: str, parsed: tuple[str | None, str]) -> None:
    assert parse_test(text) == parsed
