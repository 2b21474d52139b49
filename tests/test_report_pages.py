"""The pages of runs: their numbers, what they say where something lacks, hostile names, and a browser's view."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupwise import report
from groupwise.data import load_dataset
from groupwise.errors import UserError
from groupwise.inference.evaluation import Evaluation, Outputs, evaluation_of
from groupwise.report import looking
from groupwise.report.charts import Series, confusion_grid, lines
from groupwise.report.findings import calibration_of, guesses_of
from groupwise.report.looking import Alike, Look, Shown
from groupwise.report.pictures import Picture, thumbnails
from groupwise.report.run_page import run_page
from groupwise.report.runs import read_run
from groupwise.training import make_plan, train
from groupwise.training.events import Event, Finished, Noted
from tests import browser
from tests import tiny as bars
from tests.test_cli import _backend_of_the_tests, refusal, run  # noqa: F401 - a fixture

tiny = bars.tiny
HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'&\n{}$body"


class Page(HTMLParser):
    """A page's elements as (tag, attributes), its text, and the cells of its rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.is_in_a_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.is_in_a_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.is_in_a_cell = self.is_in_a_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.is_in_a_cell:
            self.rows[-1][-1] += data.strip()

    def said(self) -> list[str]:
        """Return what is said where something is pointed at."""
        return [attributes["data-say"] for _, attributes in self.found if "data-say" in attributes]


def run_folder(path: Path, **settings: Any) -> Path:
    """Write a run's folder by hand: two epochs, of which metrics, plan, summary and environment are known."""
    path.mkdir(parents=True)
    plan = {"data": "gone.zip", "dataset": "gone.zip", "seed": 3, "recipe": {"name": "r", "model": "m", **settings}}
    (path / "recipe.json").write_text(json.dumps(plan))
    (path / "metrics.csv").write_text(
        "epoch,learning_rate,loss,accuracy,test_loss,test_accuracy,seconds,images_per_second,share_waited,best\n"
        "1,0.5,2.0,0.25,1.5,0.5,60,100,0.25,1\n2,0.0,1.0,0.75,0.5,0.625,35,120,0.5,1\n"
    )
    summary = {"test_accuracy": 0.625, "test_loss": 0.5, "test_images": 32, "best_epoch": 2, "best_accuracy": 0.625}
    (path / "summary.json").write_text(json.dumps({**summary, "peak_memory": 3 << 29, "macs": 42_800_000}))
    (path / "environment.json").write_text(json.dumps({"backend": "jax", "processor": "a processor", "cores": 2}))
    return path


def seen(names: tuple[str, ...] = ("cat", "dog", "cow"), file: str = "a.jpg") -> Look:
    """Return a look at four images: cats taken for a cat and a dog, a dog for a dog, and a cow for a cat."""
    shares = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.9, 0.05, 0.05]], np.float32)
    outputs = Outputs(np.log(shares), np.array([0, 0, 1, 2]), np.arange(4))
    evaluation = evaluation_of(outputs.logits, outputs.labels)
    picture = Picture("data:image/jpeg;base64,AA==", "data:image/jpeg;base64,AB==", (64, 112))
    mistake = Shown(file, names[2], names[0], 0.9, 0.05, picture)
    hit = Shown(f"right {file}", names[1], names[1], 0.7, 0.7, picture)
    alike = Alike((file, f"train {file}"), (names[0], names[1]), (picture, picture), 2)
    calibration = calibration_of(guesses_of(outputs))
    return Look(names, evaluation, calibration, [mistake], [hit], [mistake], [alike])


@pytest.mark.once
def test_the_numbers_of_a_page(tmp_path: Path) -> None:
    text = run_page("a run", read_run(run_folder(tmp_path / "run")), seen(), "made here")
    page = Page(text)
    tiles = dict(re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", text))
    # ECE: bins of 1/15 hold one guess each: |1 - .8|, |0 - .6|, |1 - .7|, |0 - .9|, a quarter each.
    assert tiles == {
        "test accuracy": "50.00%",
        "loss": f"{-np.log([0.8, 0.3, 0.7, 0.05]).mean():.4f}",
        "images": "4",
        "calibration error": "50.00%",
        "training": "1 min 35 s",
    }
    classes = page.rows.index(["class", "recall", "precision", "images"])
    assert page.rows[classes + 1 : classes + 4] == [
        ["cow", "0.0%", "–", "1"],
        ["cat", "50.0%", "50.0%", "2"],
        ["dog", "100.0%", "50.0%", "1"],
    ]
    pairs = page.rows.index(["class", "taken for", "images", "of the class"])
    assert page.rows[pairs + 1 : pairs + 3] == [["cow", "cat", "1", "100.0%"], ["cat", "dog", "1", "50.0%"]]
    said = page.said()
    assert "epoch 2: training 75%, test 62.5%" in said
    assert "epoch 1: training 2, test 1.5" in said
    assert "cat taken for dog: 1 of 2 (50.0%)" in said
    assert "dog named rightly: 1 of 1 (100.0%)" in said
    assert "confidence 87% to 93%: 1 image, 0.0% right, mean confidence 90.0%" in said
    assert ["main memory", "1.5 GB at most"] in page.rows
    assert ["MACs an image", "42.8 M"] in page.rows
    assert ["training", "1 min 35 s for 2 epochs, without tests and saving"] in page.rows
    assert ["ran on", "a processor, 2 cores"] in page.rows
    assert ["seed", "3"] in page.rows
    assert "1 of 4 labels" in page.text
    assert "1 of 4 images that are tested on" in page.text


@pytest.mark.once
def test_many_classes_have_their_worst_pairs_in_place_of_a_matrix() -> None:
    generator = np.random.default_rng(0)
    confusion = generator.poisson(0.05, (200, 200)) + np.diag(generator.integers(5, 50, 200))
    confusion[7, 11] = 40
    evaluation = Evaluation(confusion, 1.0, 0.5, 0.9)
    page = Page(run_page("x", None, Look([f"class {index}" for index in range(200)], evaluation), "made"))
    first = page.rows.index(["class", "taken for", "images", "of the class"]) + 1
    assert page.rows[first] == ["class 7", "class 11", "40", f"{40 / confusion[7].sum():.1%}"]
    assert not [say for say in page.said() if "taken for" in say]
    assert "All 200 classes" in page.text


@pytest.mark.once
def test_nothing_of_others_acts_in_a_page(tmp_path: Path) -> None:
    record = read_run(run_folder(tmp_path / "run", dtype=HOSTILE, **{HOSTILE: 1}))
    names = (HOSTILE, "dog", "b" * 100)
    for text in (
        run_page(HOSTILE, record, seen(names, HOSTILE), HOSTILE, [HOSTILE]),
        report_index(tmp_path, record),
    ):
        page = Page(text)
        tags = [tag for tag, _ in page.found]
        assert tags.count("script") == 1
        assert all(attributes["src"].startswith("data:image/") for tag, attributes in page.found if tag == "img")
        assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
        assert "default-src 'none'" in str(page.found)
        assert "alert(1)" in page.text
        assert HOSTILE.replace("\n", "\\n") in re.sub(r"\s+", " ", page.text).replace("\u200b", "")


def report_index(folder: Path, record: Any) -> str:
    """Return the index of a run of a hostile plan and another one."""
    from groupwise.report.index_page import index_page

    other = read_run(run_folder(folder / "other"))
    return index_page([HOSTILE, "b"], [record, other], [seen(), None], HOSTILE)


@pytest.mark.once
def test_a_page_in_a_browser(tmp_path: Path) -> None:
    names = tuple(f"class of a long name {index}" for index in range(24))
    confusion = np.random.default_rng(0).poisson(3, (24, 24)) + 20 * np.eye(24, dtype=np.int64)
    given = seen()
    look = Look(names, Evaluation(confusion, 1.0, 0.5, 0.9), given.calibration, given.mistakes, given.doubtful)
    file = tmp_path / "page.html"
    file.write_text(run_page("a" * 60, read_run(run_folder(tmp_path / "run")), look, "made"), encoding="utf-8")
    folder = tmp_path / "browser"
    folder.mkdir()
    ask = """(() => {
      const figure = page.querySelector("#confusion figure");
      figure.querySelectorAll(".cell")[1].dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
      const order = () => [...page.querySelectorAll("#classes tbody th")].map(cell => cell.textContent);
      const before = order();
      page.querySelectorAll("#classes thead button")[0].click();
      const after = order();
      page.querySelectorAll("#classes thead button")[0].click();
      return {said: figure.querySelector("output").textContent, before, after, again: order(),
        titles: page.querySelectorAll("svg title").length};
    })()"""
    found = browser.look(file, folder, ask)
    assert found.console == []
    assert found.width == browser.PHONE
    assert len(found.drawings) == 5
    said, answer = f"taken for {names[1]}: {confusion[0, 1]} of {confusion[0].sum()}", found.answer
    assert said in answer["said"]
    first = set(answer["before"][:20])
    assert set(answer["after"][:20]) == first
    assert answer["after"][:20] == sorted(first) != answer["before"][:20]
    assert answer["again"][:20] == sorted(first, reverse=True)
    assert answer["titles"] == 0


@pytest.mark.once
def test_charts_of_what_cannot_be_drawn() -> None:
    assert lines("Loss", [Series("a", [1, 2], [np.nan, np.inf], "judged")], str) == ""
    one = Page(lines("Loss", [Series("a", [3], [2.0], "judged"), Series("b", [3], [np.nan], "s1")], "{:g}".format))
    assert one.said() == ["epoch 3: a 2"]
    assert ("circle", {"class": "judged", "cx": "50.0", "cy": "174.0", "r": "3"}) in one.found
    assert Page(confusion_grid(np.zeros((2, 2), np.int64), ["a", "b"])).said()[0] == "a named rightly: 0 of 0 (0.0%)"


@pytest.mark.once
def test_a_run_whose_data_are_gone_says_so(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (path,) = report.write_reports([folder], tmp_path / "pages")
    page = Page(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "pages" / "run.html"
    assert "The images were not looked at: gone.zip does not exist" in page.text
    assert "62.50%" in page.text
    for name in ("summary.json", "environment.json", "metrics.csv"):
        (folder / name).unlink()
    report.write_reports([folder], tmp_path / "pages")
    page = Page(path.read_text(encoding="utf-8"))
    assert "There is no summary.json: the training has not come to its end." in page.text
    assert "There is no metrics.csv: no epoch was finished." in page.text
    (folder / "summary.json").write_text("{")
    (folder / "metrics.csv").write_text("epoch,loss\n1,a\n")
    report.write_reports([folder], tmp_path / "pages")
    page = Page(path.read_text(encoding="utf-8"))
    assert "summary.json cannot be read" in page.text
    assert "metrics.csv cannot be read" in page.text


@pytest.mark.once
def test_several_runs_side_by_side(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "a" / "index", weight_decay=0.1, augmentation={"flip": True})
    second = run_folder(tmp_path / "b" / "index", weight_decay=0.2, augmentation={"flip": True})
    better = json.loads((second / "summary.json").read_text())
    (second / "summary.json").write_text(json.dumps({**better, "test_accuracy": 0.75}))
    index, *pages = report.write_reports([first, second], tmp_path / "pages", doubles=False)
    assert [page.name for page in pages] == ["index-2.html", "index-3.html"]
    page = Page(index.read_text(encoding="utf-8"))
    results = page.rows[1:3]
    assert [row[:2] for row in results] == [["index-3", "75.00%"], ["index-2", "62.50%"]]
    links = [attributes["href"] for tag, attributes in page.found if tag == "a" and ".html" in attributes["href"]]
    assert links == ["index-3.html", "index-2.html"]
    settings = page.rows[page.rows.index(["setting", "index-2", "index-3"]) :]
    assert settings == [["setting", "index-2", "index-3"], ["weight_decay", "0.1", "0.2"]]
    assert "epoch 2: index-2 62.5%, index-3 62.5%" in page.said()
    with pytest.raises(UserError, match="named twice"):
        report.write_reports([first, first], tmp_path / "pages")
    with pytest.raises(UserError, match="is no run's folder"):
        report.write_reports([tmp_path / "a"], tmp_path / "pages")


@pytest.mark.once
def test_thumbnails(tmp_path: Path) -> None:
    data = load_dataset(bars.write_folder(tmp_path / "bars", train=6, test=6))
    found = thumbnails(data.test, [0, 4], channels=1)
    assert set(found) == {0, 4}
    assert found[0].size == (112, 112)  # 8 pixels, fourteen times
    assert found[0].heat is None
    assert found[0].image.startswith("data:image/jpeg;base64,/9j/")


@pytest.fixture
def trained(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Event]]:
    """A run on bars in a folder, one of them broken, and its events."""
    monkeypatch.chdir(tmp_path)
    data = bars.write_folder(tmp_path / "bars")
    (data / "test" / "down" / "004.png").write_bytes(b"")
    Image.open(data / "train" / "across" / "000.png").save(data / "test" / "across" / "000.png")
    dataset, events = load_dataset(data), list[Event]()
    train(make_plan(dataset, "bars", bars.recipe(epochs=2)), dataset, tmp_path / "run", observer=events.append)
    return tmp_path / "run", events


def test_a_training_leaves_its_page(trained: tuple[Path, list[Event]], capsys: Any) -> None:
    folder, events = trained
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.lines()[-1].endswith("curves.png and report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    page, summary = Page(text), finished.summary
    assert summary.test_images == 29
    assert f"<dt>test accuracy</dt><dd>{summary.test_accuracy:.2%}</dd>" in text
    assert f"<dt>loss</dt><dd>{summary.test_loss:.4f}</dd>" in text
    assert summary.peak_memory is not None
    assert summary.peak_memory > 50 << 20
    # Every picture has its heat beside it, and the broken image is none of them.
    pictures = [attributes for tag, attributes in page.found if tag == "img"]
    heat = [attributes for attributes in pictures if attributes["alt"].startswith("where the network looked for")]
    assert len(pictures) == 2 * len(heat) > 0
    assert "down/004.png" not in text
    assert 'id="doubles"' not in text  # which take long, and are looked for when asked

    code, output, _ = run(capsys, "report", folder, "--output", "pages")
    assert (code, output) == (0, "page     pages/run.html\n")
    again = Page(Path("pages/run.html").read_text(encoding="utf-8"))
    assert f"{summary.test_accuracy:.2%}" in again.text
    assert "across/000.png" in again.text.partition("Doubles")[2]
    shutil.rmtree("bars")
    code, _, _ = run(capsys, "report", folder, folder.with_name("run") / "..", "--output", "pages")
    assert code == 2
    assert "is no run's folder" in refusal(capsys, "report", "pages", "--output", "others")
    assert not Path("others").exists()


@pytest.mark.once
def test_a_training_stands_where_its_page_fails(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no pictures today\nat all")

    monkeypatch.setattr(looking, "explained", fail)
    data, events = bars.dataset(tmp_path), list[Event]()
    summary = train(make_plan(data, "bars.npz", bars.recipe(epochs=1)), data, tmp_path / "run", observer=events.append)
    assert [event.text for event in events if isinstance(event, Noted)] == [
        "report.html lacks what the images tell: no pictures today"
    ]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_accuracy"] == summary.test_accuracy
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="curves"' in page
    assert 'id="mistakes"' not in page
