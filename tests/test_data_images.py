"""Every kind of image file is read as its pixels say, and what cannot be read is named with a reason."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.peers import without_compiled_operations
from groupwise.data import BrokenImage, prepare_image, read_image
from groupwise.data.images import centre_crop, read_header

pytestmark = pytest.mark.once
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(*rows):
    return Image.fromarray(np.array(rows, np.uint8))


def png(width, height, depth, colour_type, rows):
    """A PNG written by hand, by the format's own rules."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_colour_and_grey_pixels_come_as_they_are():
    image = rgb([RED, GREEN], [BLUE, WHITE])
    assert read_image(encode(image)).tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]
    grey = Image.fromarray(np.array([[0, 7, 255]], np.uint8))
    assert read_image(encode(grey), channels=1).tolist() == [[[0], [7], [255]]]
    assert read_image(encode(grey), channels=3).tolist() == [[[0] * 3, [7] * 3, [255] * 3]]


def test_colour_becomes_grey_by_its_luma():
    luma = [round(0.299 * 255), round(0.587 * 255), round(0.114 * 255)]
    assert read_image(encode(rgb([RED, GREEN, BLUE])), channels=1)[0, :, 0].tolist() == luma


def test_sixteen_bits_are_scaled_and_not_cut_off():
    content = png(4, 1, 16, 0, [struct.pack(">4H", 0, 257, 32896, 65535)])
    assert read_image(content, channels=1)[0, :, 0].tolist() == [0, 1, 128, 255]
    dark = png(2, 1, 16, 0, [struct.pack(">2H", 100, 200)])  # all below 256, and still 16 bits: nearly black
    assert read_image(dark, channels=1)[0, :, 0].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_tiff_samples_are_scaled(dtype):
    samples = [0, 257 * 100, 65535] if dtype is np.int32 else [0, 100 / 255, 1]
    content = encode(Image.fromarray(np.array([samples], dtype)), "TIFF")
    assert read_image(content, channels=1)[0, :, 0].tolist() == [0, 100, 255]


def test_palettes_bilevel_and_cmyk_become_rgb():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert read_image(encode(palette)).tolist() == [[list(RED), list(BLUE)]]
    assert read_image(encode(Image.new("1", (1, 1), 1)), channels=1).item() == 255
    for inks, colour in (((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), (0, 0, 0))):
        content = encode(Image.new("CMYK", (8, 8), inks), "JPEG", quality=100)
        assert np.abs(read_image(content).astype(int) - colour).max() <= 3
        assert read_image(content, channels=1).shape == (8, 8, 1)


def test_transparent_pixels_lie_on_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(*RED, 255), (*RED, 0), (0, 0, 0, 51)])
    assert read_image(encode(image)).tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(10, 255), (10, 0)])
    assert read_image(encode(grey), channels=1)[0, :, 0].tolist() == [10, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert read_image(encode(palette, transparency=0)).tolist() == [[list(WHITE), list(BLUE)]]


# How a picture must be stored, for each EXIF orientation, to be upright when it is shown (the EXIF standard).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation, kind):
    upright = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    content = encode(stored, kind, exif=exif)
    np.testing.assert_array_equal(read_image(content), upright)
    assert read_header(content) == ((2, 3), 3)


def test_damaged_exif_does_not_hide_the_picture():
    assert read_image(encode(rgb([RED]), exif=b"Exif\0\0nonsense")).tolist() == [[list(RED)]]


def test_of_an_animation_the_first_frame_is_read():
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN, BLUE)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(content)[0, 0].tolist() == list(RED)


def reason_of(content, **options):
    with pytest.raises(BrokenImage) as caught:
        read_image(content, name="a.jpg", **options)
    assert str(caught.value) == f"a.jpg: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_truncated_files_are_broken(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encode(Image.fromarray(noise), kind)
    assert reason_of(content[: len(content) // 2])
    assert read_image(content).shape == (64, 64, 3)


def test_reasons():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encode(Image.fromarray(noise), "JPEG")
    assert reason_of(content[: len(content) // 2]) == "truncated"
    assert reason_of(b"") == "empty file"
    assert reason_of(b"hello, this is text") == "not an image of a known format"
    assert reason_of(b"\0\0\0\x18ftypheic").startswith("a HEIC photo, which is not read: convert it")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 50_000)])
def test_absurdly_large_images_are_broken_before_they_are_decoded(width, height):
    assert reason_of(png(width, height, 8, 2, [])) == f"too large: {width} x {height} pixels"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BrokenImage, match=r"nothing\.jpg: no such file"):
        read_image(tmp_path / "nothing.jpg")


def test_large_jpegs_are_decoded_smaller_if_asked():
    content = encode(Image.new("RGB", (1024, 768), RED), "JPEG")
    assert read_image(content).shape == (768, 1024, 3)
    assert read_image(content, smallest_side=96).shape == (192, 256, 3)
    assert read_image(content, smallest_side=97).shape == (384, 512, 3)
    assert read_image(content, smallest_side=1000).shape == (768, 1024, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.binary(max_size=200), st.integers(0, 60), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF"]))
def test_damaged_bytes_are_read_or_broken_but_nothing_else(noise, place, kind):
    content = bytearray(encode(Image.new("RGB", (5, 4), BLUE), kind))
    content[place : place + len(noise)] = noise
    try:
        image = read_image(bytes(content))
    except BrokenImage:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3


def test_preparing_leaves_the_right_size_alone_and_centres_the_rest():
    image = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8, 1)
    assert prepare_image(image, (8, 8), crop=1.0) is image
    np.testing.assert_array_equal(prepare_image(image, (4, 6), crop=1.0, interpolation="nearest").shape, (4, 6, 1))
    # 8 covers 4 / 0.5 without scaling: the centre is cut out.
    np.testing.assert_array_equal(prepare_image(image, (4, 4), crop=0.5), image[2:6, 2:6])


def test_a_strip_is_not_scaled_as_a_whole():
    """Scaled to cover 64x64, a strip of 30,000 pixels would have 140 million."""
    strip = (np.arange(30_000) // 118).astype(np.uint8)[None, :, None]
    prepared = prepare_image(strip, (64, 64))
    assert prepared.shape == (64, 64, 1)
    assert np.abs(prepared.astype(int) - int(strip[0, 15_000, 0])).max() <= 1


def test_preparing_keeps_proportions():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255  # the middle third, square
    prepared = prepare_image(image, (50, 50), crop=1.0)
    assert prepared[:, 1:-1].min() == 255
    assert prepared.min() > 127  # the edges are averaged with what lies beyond


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.sampled_from([1.0, 0.875, 0.3])
)
def test_preparing_gives_the_size_asked_for(source_height, source_width, height, width, crop):
    image = np.full((source_height, source_width, 3), 77, np.uint8)
    prepared = prepare_image(image, (height, width), crop)
    assert prepared.shape == (height, width, 3)
    assert (prepared == 77).all()


@pytest.mark.parametrize("arguments", [{"crop": 0}, {"crop": 1.5}, {"interpolation": "best"}])
def test_preparing_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match=r"crop=|interpolation="):
        prepare_image(np.zeros((9, 9, 3), np.uint8), (4, 4), **arguments)


def peers_places(height, width, side, crop):
    """By hand, torchvision's Resize(side) and CenterCrop(crop): the scaled (height, width), then (top, left)."""
    short, long = min(height, width), max(height, width)
    longer = int(side * long / short)
    scaled = (side, longer) if height <= width else (longer, side)
    return scaled, tuple(round((length - crop) / 2.0) for length in scaled)


PHOTO_SIDES = st.integers(20, 700)


@example(49, 98, 224, 0.875)  # as floats, 256 / 49 * 98 is less than 512
@example(20, 45, 224, 1.0)
@given(PHOTO_SIDES, PHOTO_SIDES, st.sampled_from([8, 32, 224, 240, 299]), st.sampled_from([0.875, 0.9, 0.8965, 1.0]))
def test_scaled_sizes_and_crops_are_the_peers(height, width, size, crop):
    expected = peers_places(height, width, math.floor(size / crop), size)
    assert centre_crop((height, width), (size, size), crop) == expected
    assert centre_crop((height * 3, width * 3), (size, size), crop) == expected  # as exact for photos of thousands


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (224, 224), (256, 256), (61, 199), (700, 23)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photos_are_prepared_as_torchvision_and_timm_do_it(height, width, interpolation):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    prepared = prepare_image(pixels, (224, 224), 0.875, interpolation)
    with without_compiled_operations():
        transforms = pytest.importorskip("torchvision.transforms", exc_type=ImportError)
        timm_data = pytest.importorskip("timm.data", exc_type=ImportError)
    filters = transforms.InterpolationMode(interpolation)
    torchvisions = transforms.Compose([transforms.Resize(256, filters), transforms.CenterCrop(224)])
    np.testing.assert_array_equal(prepared, torchvisions(Image.fromarray(pixels)))
    timms = timm_data.create_transform((3, 224, 224), interpolation=interpolation, crop_pct=0.875, normalize=False)
    np.testing.assert_array_equal(prepared.transpose(2, 0, 1), timms(Image.fromarray(pixels)))
