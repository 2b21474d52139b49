"""JPEGs of a training are decoded by simplejpeg where it is installed, to Pillow's bits; all else by Pillow."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupwise.data import BrokenImage, images, read_image

pytestmark = pytest.mark.once
simplejpeg = pytest.importorskip("simplejpeg")
SIDE = 1000  # a hint so large that nothing is decoded at a part of its size


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What simplejpeg was given."""
    given: list[bytes] = []
    decode = simplejpeg.decode_jpeg

    def noting(content: bytes, *arguments: Any, **options: Any) -> Any:
        given.append(content)
        return decode(content, *arguments, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noting)
    return given


def jpeg(mode: str = "RGB", size: tuple[int, int] = (83, 61), **options: Any) -> bytes:
    """A JPEG of coloured noise over a gradient."""
    generator = np.random.default_rng(1)
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([2 * rows, 2 * columns, rows + columns], -1) + generator.integers(0, 60, (size[1], size[0], 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"quality": 30}, {"subsampling": 0}, {"subsampling": 2, "progressive": True}])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_a_training_has_the_bits_of_pillow(
    options: dict[str, Any], mode: str, channels: int, decoded: list[bytes]
) -> None:
    content = jpeg(mode, **options)
    truth = read_image(content, channels)
    assert not decoded  # a test's image is Pillow's
    np.testing.assert_array_equal(read_image(content, channels, smallest_side=SIDE), truth)
    assert decoded == [content]


def test_what_is_no_plain_jpeg_is_left_to_pillow(decoded: list[bytes]) -> None:
    turned = Image.Exif()
    turned[images.ORIENTATION_TAG] = 6
    png = io.BytesIO()
    Image.open(io.BytesIO(jpeg())).save(png, "PNG")
    others = [(jpeg(exif=turned), 3), (jpeg("L"), 3), (jpeg(), 1), (jpeg("CMYK"), 3), (png.getvalue(), 3)]
    for content, channels in others:
        truth = read_image(content, channels)
        np.testing.assert_array_equal(read_image(content, channels, smallest_side=SIDE), truth)
    assert read_image(jpeg(), smallest_side=15).shape == (31, 42, 3)  # at half its size
    assert not decoded


def test_a_damaged_jpeg_is_called_what_pillow_calls_it() -> None:
    for content in (jpeg()[:-700], jpeg()[:300]):
        reasons = []
        for side in (None, SIDE):
            with pytest.raises(BrokenImage) as caught:
                read_image(content, smallest_side=side)
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]
    flipped = bytearray(jpeg())
    flipped[len(flipped) // 2] ^= 0x55
    np.testing.assert_array_equal(read_image(bytes(flipped), smallest_side=SIDE), read_image(bytes(flipped)))


def test_without_simplejpeg_all_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(read_image(jpeg(), smallest_side=SIDE), read_image(jpeg()))
