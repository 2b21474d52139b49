"""The pictures are drawn, whatever is to be drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groupwise import report

HEADER = "epoch,learning_rate,loss,accuracy,{0}_loss,{0}_accuracy,seconds,images_per_second,share_waited\n"


def _is_picture(path: Path) -> bool:
    pixels = np.asarray(Image.open(path).convert("L"))
    return min(pixels.shape) > 300 and pixels.std() > 5


@pytest.mark.parametrize("judge", ["test", "validation"])
@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves(tmp_path: Path, judge: str, epochs: int) -> None:
    rows = [
        f"{epoch},{0.1 / epoch},{2 / epoch},{1 - 0.9 / epoch},{2.2 / epoch},{1 - 0.9 / epoch},1,1,0"
        for epoch in range(1, epochs + 1)
    ]
    (tmp_path / "metrics.csv").write_text(HEADER.format(judge) + "\n".join(rows))
    report.curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert _is_picture(tmp_path / "curves.png")


def test_curves_of_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(HEADER.format("test"))
    with pytest.raises(ValueError, match="no rows"):
        report.curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("count", [2, 10, 45, 1000])
def test_confusion(tmp_path: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    matrix = generator.poisson(0.3, (count, count)) + np.diag(generator.integers(0, 50, count))
    matrix[1] = 0  # a class without images
    report.confusion(matrix, [f"class number {index}" for index in range(count)], tmp_path / "confusion.png")
    assert _is_picture(tmp_path / "confusion.png")


def test_a_matrix_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 3 x 3"):
        report.confusion(np.zeros((2, 2), np.int64), ["a", "b", "c"], tmp_path / "confusion.png")
