"""Preprocessing: what becomes of an image, stored and read back, one image and in batches."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupwise.data import ImageBatches, Preprocessing, Split
from groupwise.errors import UserError

pytestmark = pytest.mark.once
COLOUR = Preprocessing(mean=(0.5, 0.25, 0.125), std=(0.25, 0.5, 1.0), interpolation="bicubic", crop=0.8, offset="down")


def photo(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_is_resized_cut_and_normalised() -> None:
    image = photo(41, 60)
    # 24 / 0.8 = 30 is the short side, 30 * 60 // 41 = 43 the long one; of 6 and 19 pixels half is cut before.
    resized = np.asarray(Image.fromarray(image).resize((43, 30), Image.Resampling.BICUBIC), np.float64)
    expected = (resized[3:27, 9:33] / 255 - COLOUR.mean) / COLOUR.std
    prepared = COLOUR.apply(image, (24, 24))
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, expected, atol=1e-6)
    left, top, right, bottom = COLOUR.crop_box((41, 60), (24, 24))
    assert (left, right) == pytest.approx((9 * 60 / 43, 33 * 60 / 43))
    assert (top, bottom) == pytest.approx((3 * 41 / 30, 27 * 41 / 30))


def test_batches_do_the_same_up_to_rounding() -> None:
    images = [photo(41, 60), photo(50, 30)]
    split = Split(np.array([0, 1]), ["a", "b"], lambda index, side: images[index])
    ((batch, _),) = ImageBatches(split, 2, (24, 24, 3), 2, COLOUR)
    np.testing.assert_allclose(batch, [COLOUR.apply(image, (24, 24)) for image in images], atol=1e-6)


def test_it_is_read_back_as_it_was_stored() -> None:
    assert Preprocessing.of(COLOUR.as_dict(), 3) == COLOUR
    assert Preprocessing.of({"mean": [0.5], "std": [0.5]}, 3) == Preprocessing((0.5,), (0.5,))
    grey = COLOUR.for_channels(1)
    assert (grey.mean, grey.std) == ((0.875 / 3,), (1.75 / 3,))
    assert grey.for_channels(3).mean == 3 * grey.mean
    assert COLOUR.for_channels(3) == COLOUR


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": [0.5, 0.5]}, r"preprocessing says mean=\[0.5, 0.5\]"),
        ({"std": [0.5, 0.5, 0.0]}, "std="),
        ({"crop": 1.5}, "crop=1.5"),
        ({"crop": "all"}, "crop='all'"),
        ({"interpolation": ["bilinear"]}, "interpolation="),
        ({"offset": "up"}, "offset='up'"),
    ],
)
def test_damaged_ones_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Preprocessing.of({**COLOUR.as_dict(), **change}, 3)
    with pytest.raises(UserError, match="mean=None"):
        Preprocessing.of(None, 3)


def test_what_cannot_be_is_refused() -> None:
    for change in ({"crop": 0.0}, {"interpolation": "best"}, {"offset": "up"}, {"std": (0.0,)}, {"mean": ()}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(COLOUR, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"std=\(0.5, 0.5\): must be one number for all channels, or as many as mean="):
        replace(COLOUR, std=(0.5, 0.5))
    assert replace(COLOUR, std=(0.5,)).apply(photo(8, 8), (8, 8)).shape == (8, 8, 3)
