"""How an image becomes a network's input: resized, cut to size, and normalised."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groupwise.data.images import RESAMPLING, ImageArray, Interpolation, centre_crop, prepare_image
from groupwise.errors import UserError

OFFSETS = ("even", "down")


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants of its images: `apply` does it.

    Attributes:
        mean, std: of each channel, or one for all, for pixels from 0 to 1.
        interpolation: the resize's filter, by Pillow's name in lower case.
        crop: the share of the resized image's side that the centre crop keeps, in (0, 1].
        offset: to which pixel the crop's corner is rounded where half a pixel is left over: "even", as torchvision and
            timm do, or "down".

    Raises:
        ValueError: a value is none of these.

    Examples:
        >>> Preprocessing(mean=(0.5,), std=(0.25,), crop=1.0).apply(np.full((4, 6, 1), 255, np.uint8), (2, 2)).tolist()
        [[[2.0], [2.0]], [[2.0], [2.0]]]
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    crop: float = 0.875
    offset: str = "even"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not values or not all(map(math.isfinite, values)):
                raise ValueError(f"{name}={values}: must be finite numbers, one of each channel or one for all")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: must be positive, since images are divided by it")
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise ValueError(f"std={self.std}: must be one number for all channels, or as many as mean={self.mean}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop}: the share of the side that is kept lies in (0, 1]")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation={self.interpolation!r}: not of {', '.join(RESAMPLING)}")
        if self.offset not in OFFSETS:
            raise ValueError(f"offset={self.offset!r}: not of {', '.join(OFFSETS)}")

    @classmethod
    def of(cls, content: Any, channels: int) -> "Preprocessing":
        """Return what `as_dict` gave, or a model's metadata have: of images of so many channels.

        Raises:
            UserError: they are damaged.
        """
        given = content if isinstance(content, Mapping) else {}
        wrong = next((name for name, is_right in _checks(given, channels).items() if not is_right), None)
        if wrong:
            raise UserError(f"preprocessing says {wrong}={given.get(wrong)!r}")
        values = {field.name: given[field.name] for field in fields(cls) if field.name in given}
        return cls(**{**values, "mean": tuple(given["mean"]), "std": tuple(given["std"])})

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def for_channels(self, channels: int) -> "Preprocessing":
        """Return it with as many means and deviations as there are channels: their mean for one, the one for all."""

        def spread(values: tuple[float, ...]) -> tuple[float, ...]:
            return values if len(values) == channels else (sum(values) / len(values),) * channels

        return replace(self, mean=spread(self.mean), std=spread(self.std))

    def apply(self, pixels: ImageArray, size: tuple[int, int]) -> NDArray[np.float32]:
        """Return an image as the network wants it: float32, of the size wanted and its own channels.

        Args:
            pixels: uint8, (height, width, channels), of any size.
            size: the (height, width) wanted.
        """
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        return ((self.fit(pixels, size) / np.float32(255) - mean) / std).astype(np.float32)

    def fit(self, pixels: ImageArray, size: tuple[int, int]) -> ImageArray:
        """Return an image resized and cut to (height, width), uint8 as before."""
        return prepare_image(pixels, size, self.crop, self.interpolation, self.offset)

    def crop_box(self, source: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return (left, top, right, bottom), in its pixels, of what `fit` keeps of an image of (height, width)."""
        height, width = size
        scaled, (top, left) = centre_crop(source, size, self.crop, self.offset)
        vertical, horizontal = source[0] / scaled[0], source[1] / scaled[1]
        return left * horizontal, top * vertical, (left + width) * horizontal, (top + height) * vertical


def _checks(given: Mapping[str, Any], channels: int) -> dict[str, bool]:
    """Return for each value, in the order in which errors name them, whether it is right."""
    return {
        "mean": _are_numbers(given.get("mean"), channels),
        "std": _are_numbers(given.get("std"), channels) and all(value > 0 for value in given["std"]),
        "crop": _are_numbers([given.get("crop", 1)], 1) and 0 < given.get("crop", 1) <= 1,
        "interpolation": given.get("interpolation", "bilinear") in tuple(RESAMPLING),
        "offset": given.get("offset", "even") in OFFSETS,
    }


def _are_numbers(values: Any, count: int) -> bool:
    """Return whether values are finite numbers, `count` of them or one for all."""
    if not isinstance(values, list | tuple) or len(values) not in (1, count):
        return False
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)
