"""Images as thumbnails that a page holds, and where a network looked in them."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groupwise.data import BrokenImage, Split
from groupwise.errors import UserError
from groupwise.inference.preprocessing import preprocessing_of
from groupwise.inference.saliency import Explainer
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.report.heat_map import with_heat

SIDE = 112
"""Pixels of a thumbnail's long side; small images grow by whole numbers up to it."""

AT_ONCE = 16
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    """An image as addresses that hold it: as it is, and with where the network looked for what it took it for.

    Attributes:
        image: `data:image/jpeg;base64,...`.
        heat: the same with the map, or None where that cannot be said.
        size: (height, width) of both, in pixels.
    """

    image: str
    heat: str | None
    size: tuple[int, int]


def thumbnails(split: Split, places: Iterable[int], channels: int) -> dict[int, Picture]:
    """Return the images at some places of a split, but for those that cannot be read."""
    found = {}
    for place in places:
        try:
            pixels = split.with_channels(channels).read(place)
        except BrokenImage:
            continue
        small = _small(pixels)
        found[place] = Picture(_address(small), None, (small.height, small.width))
    return found


def explained(
    network: Network | RewrittenNetwork, split: Split, places: Iterable[int]
) -> tuple[dict[int, Picture], str]:
    """Return the images at some places of a split with where the network looked, and a sentence on what lacks.

    Args:
        network: with preprocessing in its metadata.
        split: of the images.
        places: of those wanted.
    """
    height, width, channels = network.architecture["input_shape"]
    found = thumbnails(split, places, channels)
    try:
        explainer = Explainer(network)
    except UserError as error:
        return found, str(error)
    preprocessing, own = preprocessing_of(network), split.with_channels(channels)
    order = list(found)
    for start in range(0, len(order), AT_ONCE):
        some = order[start : start + AT_ONCE]
        images = [own.read(place) for place in some]
        prepared = np.stack([preprocessing.apply(image, (height, width)) for image in images])
        _, maps = explainer.explain(prepared, batch_size=AT_ONCE)
        for place, image, heat in zip(some, images, maps, strict=True):
            small = _small(image)
            scales = small.width / image.shape[1], small.height / image.shape[0]
            box = preprocessing.crop_box(image.shape[:2], (height, width))
            crop = [round(side * scales[number % 2]) for number, side in enumerate(box)]
            pixels = with_heat(np.asarray(small, np.float32) / np.float32(255), heat, crop)
            hot = Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
            found[place] = Picture(found[place].image, _address(hot), found[place].size)
    return found, ""


def _small(image: NDArray[np.uint8]) -> Image.Image:
    """Return an image in colour, no longer than `SIDE`; pixels of a small one stay squares."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    scale = scale if scale < 1 else int(scale)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def _address(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
