"""What a notebook shows of a training, of a model's description and of a diagnosis."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import pytest

import groupwise
from groupwise.diagnosis.finding import Finding, Weight
from groupwise.errors import UserError
from groupwise.models import describe
from groupwise.training import NotebookObserver, make_plan, notebook, train
from groupwise.training.workspace import Workspace
from tests import tiny as bars

tiny = bars.tiny


class Shown:
    """Stands for IPython's display: keeps every state of the one thing that is shown."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def __call__(self, page: Any, display_id: bool) -> "Shown":
        assert display_id
        assert not self.pages
        self.update(page)
        return self

    def update(self, page: Any) -> None:
        self.pages.append(page.data)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    display = Shown()
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(notebook, "INTERVAL", 0.0)
    return display


@pytest.mark.once
def test_a_training_is_one_thing_that_changes(
    tiny: str, tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groupwise.training.fit.is_notebook", lambda: True)
    dataset, folder = bars.dataset(tmp_path), tmp_path / "run"
    train(make_plan(dataset, "bars<1>.npz", bars.recipe(epochs=2)), dataset, folder)
    last, rows = shown.pages[-1], Workspace(folder).read_metrics()
    assert [f"{row['test_accuracy']:.2%}" in last for row in rows] == [True, True]
    assert re.findall(r">(\d/2)<", last) == ["1/2", "2/2"]
    assert "after 2 epochs" in last
    assert "<progress" not in last
    bars_shown = [re.search(r'value="(\d+)" max="(\d+)"', page) for page in shown.pages]
    moved = [int(bar[1]) for bar in bars_shown if bar is not None]
    assert moved == sorted(moved)
    assert moved[0] == 0
    assert moved[-1] == 12
    assert {bar[2] for bar in bars_shown if bar is not None} == {"12"}


@pytest.mark.once
def test_it_is_the_default_in_a_kernel_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython

    assert not notebook.is_notebook()
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": object()})())
    assert notebook.is_notebook()
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Terminal", (), {})())
    assert not notebook.is_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.is_notebook()


@pytest.mark.once
def test_without_ipython_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"IPython, which is not installed: pip install"):
        NotebookObserver()


@pytest.mark.once
def test_a_description_is_a_table() -> None:
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="a"), keras.layers.Flatten()])
    table = describe(model)._repr_html_()
    assert ">6x6x4<" in table
    assert ">112<" in table
    assert ">3,888<" in table
    assert table.count("<tr>") == 1 + 2 + 1


@pytest.mark.once
def test_a_diagnosis_is_a_table_of_its_findings() -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(4, name="<b>")])
    found = groupwise.diagnose(model)
    assert "nothing was found" in found._repr_html_()
    fault = Finding("a fault", Weight.STOPS, "zeros", "nothing moves", "begin again", 0.0, where=("<b>",))
    table = replace(found, findings=(fault,))._repr_html_()
    assert table.count("<tr>") == 2
    assert "zeros at &lt;b&gt;: nothing moves" in table
