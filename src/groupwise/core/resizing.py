"""Images of bytes, resized by the C core to the bits of Pillow's `Image.resize`, and not copied into its images."""

import ctypes

import numpy as np

from groupwise.core import library

FILTERS = ("bilinear", "bicubic", "lanczos")
"""Pillow's names of the filters that the core knows, in the order of `GwFilter`."""
MOST_CHANNELS = 4
VERY_TALL = 100
"""How many times as high as wide an image is of which Pillow scales the columns first, where they become shorter."""


class _Resizing(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in ("height", "width", "channels", "row_bytes", "out_height", "out_width", "filter", "mirrored")
    )


def resize(
    image: np.ndarray, size: tuple[int, int], interpolation: str = "bilinear", mirrored: bool = False
) -> np.ndarray:
    """Return an image, or a rectangle of one, at another size.

    Args:
        image: uint8 of (height, width, channels), of 1 to 4 channels, not empty; rows may have gaps between them, as
            those of a slice have, pixels may not.
        size: the (height, width) of the result.
        interpolation: one of FILTERS. Smaller images are antialiased.
        mirrored: whether left and right change places.

    Returns:
        uint8, (*size, channels).

    Raises:
        ValueError: for other images, filters or sizes. RuntimeError: where there is no core.

    Examples:
        >>> image = np.array([0, 100, 200, 240], "uint8").reshape(1, 4, 1)
        >>> resize(image, (1, 2)).ravel().tolist()
        [71, 203]
    """
    if image.dtype != np.uint8 or image.ndim != 3 or not 1 <= image.shape[2] <= MOST_CHANNELS:
        raise ValueError(f"image of shape {image.shape} and type {image.dtype}: must be uint8, of 1 to 4 channels")
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation={interpolation!r}: the C core knows {', '.join(FILTERS)}")
    height, width, _ = image.shape
    if height > VERY_TALL * width and size[0] < height:
        image = _resize(image, (size[0], width), interpolation, False)
    return _resize(image, size, interpolation, mirrored)


def _resize(image: np.ndarray, size: tuple[int, int], interpolation: str, mirrored: bool) -> np.ndarray:
    height, width, channels = image.shape
    if image.strides[1:] != (channels, 1) or image.strides[0] < width * channels:
        image = image.copy()  # NumPy takes a single row for contiguous, whatever it says of the next one's place
    sizes = _Resizing(height, width, channels, image.strides[0], *size, FILTERS.index(interpolation), mirrored)
    out = np.empty((*size, channels), np.uint8)
    status = library.loaded().gw_resize(ctypes.byref(sizes), image.ctypes.data, out.ctypes.data)
    if status:
        library.raise_status(status, f"resizing an image of shape {image.shape} to {size}")
    return out
