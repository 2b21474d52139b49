"""The C core's resize gives Pillow's bits, through `resizing.resize` and in a training's random crops."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from groupwise.core import library, resizing
from groupwise.data import Augmentation
from groupwise.data.images import RESAMPLING
from groupwise.data.variation import Varying

pytestmark = pytest.mark.once
if not library.is_available():
    pytest.skip(f"{library.path()}: the C core is off, or does not load", allow_module_level=True)

SIDES = st.integers(1, 70)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = library.instruction_set()
    yield
    library.use_instruction_set(before)


def pillow(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Return what Pillow makes of an image, each channel by itself: none of them is transparency."""
    planes = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(size[::-1], RESAMPLING[interpolation])
        for channel in range(image.shape[2])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def drawn(shape: tuple[int, ...], seed: int, only_extremes: bool = False) -> np.ndarray:
    """Return an image whose memory ends close behind it."""
    generator = np.random.default_rng(seed)
    if only_extremes:  # overshoots are cut off, sums are the largest
        return generator.integers(0, 2, shape, np.uint8) * np.uint8(255)
    return generator.integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("instruction_set", library.instruction_sets())
@given(
    size=st.tuples(SIDES, SIDES, st.integers(1, 4)),
    out=st.tuples(SIDES, SIDES),
    interpolation=st.sampled_from(resizing.FILTERS),
    mirrored=st.booleans(),
    only_extremes=st.booleans(),
)
def test_any_image_has_the_bits_of_pillow(instruction_set, size, out, interpolation, mirrored, only_extremes):
    if not library.use_instruction_set(instruction_set):
        pytest.skip(f"this machine has no {instruction_set}")
    image = drawn(size, seed=size[0], only_extremes=only_extremes)
    expected = pillow(image, out, interpolation)
    result = resizing.resize(image, out, interpolation, mirrored)
    np.testing.assert_array_equal(result, expected[:, ::-1] if mirrored else expected)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((375, 500, 3), (224, 224)), ((1200, 900, 3), (96, 97)), ((643, 6, 3), (167, 220)), ((3, 2000, 1), (5, 7))],
    ids=["photo", "large", "so tall that Pillow begins with the columns", "flat"],
)
@pytest.mark.parametrize("interpolation", resizing.FILTERS)
def test_photos_and_odd_shapes_have_the_bits_of_pillow(shape, size, interpolation):
    image = drawn(shape, seed=1)
    np.testing.assert_array_equal(resizing.resize(image, size, interpolation), pillow(image, size, interpolation))


@pytest.mark.parametrize(
    "rows", [slice(3, 33), slice(39, 40), slice(None, None, 2), slice(None, None, -1), slice(None, 38, -1)], ids=str
)
@pytest.mark.parametrize("columns", [slice(5, 25), slice(None, None, 2), slice(49, 50)], ids=str)
def test_a_slice_is_resized_as_its_copy_is(rows, columns):
    image = drawn((40, 50, 3), seed=2)[rows, columns]
    np.testing.assert_array_equal(resizing.resize(image, (20, 30)), pillow(image, (20, 30), "bilinear"))


@pytest.mark.parametrize(
    ("image", "options", "says"),
    [
        (np.zeros((4, 4, 3), np.float32), {}, "float32: must be uint8"),
        (np.zeros((4, 4), np.uint8), {}, r"shape \(4, 4\)"),
        (np.zeros((4, 4, 5), np.uint8), {}, "of 1 to 4 channels"),
        (np.zeros((4, 4, 3), np.uint8), {"interpolation": "nearest"}, "knows bilinear, bicubic, lanczos"),
        (np.zeros((4, 4, 3), np.uint8), {"size": (0, 4)}, "invalid"),
        (np.zeros((0, 4, 3), np.uint8), {}, "invalid"),
    ],
)
def test_what_cannot_be_resized_is_refused(image, options, says):
    with pytest.raises(ValueError, match=says):
        resizing.resize(image, **{"size": (2, 2), **options})


@pytest.mark.parametrize("crop_padding", [0, 2])
def test_a_training_sees_the_same_images_without_the_core(monkeypatch, crop_padding):
    image = drawn((120, 160, 3), seed=3)
    augmentation = Augmentation(flip=True, resized_crop=(0.08, 1.0), crop_padding=crop_padding)
    varying = Varying(augmentation, (64, 48), "bicubic", np.zeros(3, np.uint8))
    with_core = [varying.vary(image, np.random.default_rng(seed)) for seed in range(20)]
    monkeypatch.setenv("GROUPWISE_CORE", "0")
    without = [varying.vary(image, np.random.default_rng(seed)) for seed in range(20)]
    np.testing.assert_array_equal(with_core, without)
