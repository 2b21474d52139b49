"""The pictures are drawn, whatever is to be drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from groupwise import report

pytestmark = pytest.mark.once
HEADER = "epoch,learning_rate,loss,accuracy,{0}_loss,{0}_accuracy,seconds,images_per_second,share_waited\n"


def _is_picture(path: Path) -> bool:
    pixels = np.asarray(Image.open(path).convert("L"))
    return min(pixels.shape) > 300 and pixels.std() > 5


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, in order."""
    saved: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", kept)
    return saved


@pytest.mark.parametrize("judge", ["test", "validation"])
@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves(tmp_path: Path, figures: list[Figure], judge: str, epochs: int) -> None:
    steps = np.arange(1.0, epochs + 1)
    accuracy, loss, rate = (1 - 0.9 / steps, 0.98 - 0.9 / steps), (2 / steps, 2.2 / steps), (0.1 / steps,)
    rows = zip(steps, *rate, loss[0], accuracy[0], loss[1], accuracy[1], strict=True)
    lines = [",".join([*map(str, row), "1,1,0"]) for row in rows]
    (tmp_path / "metrics.csv").write_text(HEADER.format(judge) + "\n".join(lines))
    report.curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert _is_picture(tmp_path / "curves.png")
    for axes, drawn in zip(figures[0].axes, (accuracy, loss, rate), strict=True):
        for line, values in zip(axes.lines, drawn, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), np.stack([steps, values], 1))


def test_curves_of_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(HEADER.format("test"))
    with pytest.raises(ValueError, match="no rows"):
        report.curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("count", [2, 10, 45, 1000])
def test_confusion(tmp_path: Path, figures: list[Figure], count: int) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.poisson(0.3, (count, count)) + np.diag(generator.integers(0, 50, count))
    matrix[1] = 0  # a class without images
    report.confusion(matrix, [f"class number {index}" for index in range(count)], tmp_path / "confusion.png")
    assert _is_picture(tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), matrix / np.maximum(matrix.sum(1, keepdims=True), 1))
    assert axes.get_title(loc="left").startswith(f"{np.trace(matrix) / matrix.sum():.1%} of ")


def test_a_matrix_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 3 x 3"):
        report.confusion(np.zeros((2, 2), np.int64), ["a", "b", "c"], tmp_path / "confusion.png")


def test_a_heat_map_shows_the_photo_the_crop_and_the_heat(tmp_path: Path) -> None:
    image = np.zeros((300, 500, 3), np.uint8)
    image[..., 1] = 200
    report.heat_map(
        image, np.array([[1, 1, 0, 0]], np.float32), (100, 50, 400, 250), "a class, 50.0%", tmp_path / "a.png"
    )
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (500 + 24, 300 + 12 + 46)
        pixels = np.asarray(picture.convert("RGB"))[12 : 12 + 300, 12 : 12 + 500].astype(int)
    inside, outside = pixels[50:250, 100:400], pixels[:40]
    np.testing.assert_array_equal(inside[:, -60:], image[50:250, 340:400])  # where it did not look: the photo itself
    assert (np.ptp(outside, axis=-1) == 0).all()  # not seen: grey, and lighter
    assert outside.mean() > 150
    heat = inside[:, :60]
    assert (heat[..., 0] > 150).all()  # the hottest place: the colour map's yellow shines through
    assert (heat[..., 2] > 0).all()
