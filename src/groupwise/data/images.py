"""Reading one image file, whatever its kind, into an array of 8-bit channels."""

import io
import stat
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from groupwise.errors import UserError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

ImageArray: TypeAlias = NDArray[np.uint8]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

MAXIMUM_PIXELS = 89_478_485  # Pillow's own threshold: a quarter of a GiB as 24-bit pixels
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Told from anything else by how they begin, as TGA is not. AVIF last: an older Pillow does not know the name.
TOLD_BY_CONTENT = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "JPEG2000", "AVIF")
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
MODES = {1: "L", 3: "RGB"}
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(UserError):  # noqa: N818 - a kind of image, as messages call it
    """An image that cannot be read.

    Attributes:
        name: the image's name, as a message should show it.
        reason: why it cannot be read, such as "truncated".
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class UnknownImage(BrokenImage):
    """What is no image, or one of a kind that is not read."""


class LargeImage(BrokenImage):
    """An image of more than `MAXIMUM_PIXELS`."""


def read_image(
    source: str | Path | bytes,
    channels: int = 3,
    *,
    name: str | None = None,
    smallest_side: int | None = None,
) -> ImageArray:
    """Read an image file as an upright array of 8-bit channels.

    The EXIF orientation is applied, 16-bit samples are scaled to 8 bits (65535 becomes 255), transparent
    pixels are laid over white, palettes and CMYK become RGB, and of an animation the first frame is taken.

    Args:
        source: a path, or the bytes of an image file.
        channels: 1 for grey, 3 for RGB.
        name: what errors call the image. Default: the path.
        smallest_side: a hint, in pixels: a larger JPEG may be decoded at a half, a quarter or an eighth of
            its size as long as both sides keep twice this length, which is several times faster.

    Returns:
        A uint8 array of shape (height, width, channels).

    Raises:
        BrokenImage: the file is missing, empty, truncated, too large or not an image.

    Examples:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 2), 255).save(file, "PNG")
        >>> read_image(file.getvalue(), channels=3).shape
        (2, 4, 3)
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: an image is read with 1 channel (grey) or 3 (RGB)")
    name = name or ("image" if isinstance(source, bytes) else str(source))
    content = source if isinstance(source, bytes) else read_file(Path(source), name)
    if not content:
        raise BrokenImage(name, "empty file")
    try:
        with _open(content, name) as image:
            if smallest_side is not None:
                full_size = image.size
                image.draft(None, (2 * smallest_side, 2 * smallest_side))
                decoded = _decode_fast(image, content, channels) if image.size == full_size else None
                if decoded is not None:
                    return decoded
            image.load()
            return _to_array(_upright(image), channels)
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        raise UnknownImage(name, unknown_format(content)) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        text = str(error) or type(error).__name__
        raise BrokenImage(name, "truncated" if "truncated" in text.lower() else f"damaged ({text})") from error


def _decode_fast(image: Image.Image, content: bytes, channels: int) -> ImageArray | None:
    """Return the pixels of an upright JPEG in the channels wanted; None where that is left to Pillow.

    They are Pillow's, to the bit, in two thirds of its time: the same library writes them where they are wanted.
    """
    if simplejpeg is None or image.format != "JPEG" or image.mode != MODES[channels]:
        return None
    if image.getexif().get(ORIENTATION_TAG, 1) != 1:
        return None
    try:
        decoded: ImageArray = simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB", strict=True)
    except ValueError:  # Pillow says what is wrong, or reads it all the same
        return None
    return decoded


def open_file(path: Path, name: str) -> BinaryIO:
    """Open a regular file: a pipe may never end. Raises BrokenImage, with this name, where that cannot be."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BrokenImage(name, "a folder" if path.is_dir() else "no regular file")
        return path.open("rb")
    except OSError as error:
        raise BrokenImage(name, (error.strerror or "cannot be read").lower()) from error


def read_file(path: Path, name: str) -> bytes:
    """Return a regular file's bytes. Raises BrokenImage, with this name, where there are none to be had."""
    with open_file(path, name) as file:
        try:
            return file.read()
        except OSError as error:
            raise BrokenImage(name, (error.strerror or "cannot be read").lower()) from error


def is_picture(file: IO[bytes], with_tiff: bool = False) -> bool:
    """Return whether a file is an image of a kind that is read, by its first bytes and whatever its name.

    TIFF is left out where not asked for: cameras' raw files pass for it, but hold a small preview.
    """
    try:
        with Image.open(file, formats=("TIFF", *TOLD_BY_CONTENT) if with_tiff else TOLD_BY_CONTENT):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True
    except Exception:  # as in read_image
        return False


def read_header(content: bytes) -> tuple[tuple[int, int], int] | None:
    """Return the (height, width) and the channels (1 or 3) that an image file declares; None if unreadable."""
    try:
        with _open(content, "") as image:
            # Of a TIFF, Pillow gives the upright size, and later the upright picture, by itself.
            orientation = image.getexif().get(ORIENTATION_TAG, 1) if image.format != "TIFF" else 1
            size = image.size if orientation in (5, 6, 7, 8) else (image.height, image.width)
            return size, 1 if image.mode in ("1", "L", "LA") or image.mode.startswith(("I", "F")) else 3
    except Exception:  # as in read_image; whoever decodes the image names the reason
        return None


def prepare_image(
    image: ImageArray,
    image_size: tuple[int, int],
    crop: float = 0.875,
    interpolation: Interpolation = "bilinear",
    offset: str = "even",
) -> ImageArray:
    """Scale an image so that it covers image_size / crop, and cut image_size out of its centre.

    The sizes and, with an "even" offset, the places are torchvision's `Resize` and `CenterCrop`, and timm's, to the
    pixel: published accuracies depend on them. With crop = 1, an image that already has this size is returned as it is.

    Args:
        image: uint8, (height, width, channels).
        image_size: the (height, width) wanted, in pixels.
        crop: the share of the scaled image's side that is kept, in (0, 1].
        interpolation: Pillow's filter, which also averages when it shrinks.
        offset: where the crop begins if half a pixel is left over: at the "even" pixel, or the one further "down".

    Returns:
        uint8, (height, width, channels), of `image_size`.

    Examples:
        >>> prepare_image(np.zeros((100, 200, 3), np.uint8), (56, 56)).shape
        (56, 56, 3)
    """
    source_height, source_width = image.shape[:2]
    scaled_size, (top, left) = centre_crop((source_height, source_width), image_size, crop, offset)
    if (source_height, source_width) == image_size == scaled_size:
        return image
    (height, width), (scaled_height, scaled_width) = image_size, scaled_size
    if scaled_height * scaled_width > MAXIMUM_PIXELS:  # a strip: only what is kept of it is scaled
        down, right = source_height / scaled_height, source_width / scaled_width
        return resize(
            image, image_size, interpolation, (left * right, top * down, (left + width) * right, (top + height) * down)
        )
    scaled = resize(image, scaled_size, interpolation)
    return scaled[top : top + height, left : left + width]


def centre_crop(
    source_size: tuple[int, int], image_size: tuple[int, int], crop: float = 0.875, offset: str = "even"
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return where `prepare_image` finds its pixels: the scaled image's (height, width), the crop's (top, left) in it.

    Args:
        source_size: the image's (height, width).
        image_size: the (height, width) wanted.
        crop: the share of the scaled image's side that is kept, in (0, 1].
        offset: `prepare_image`'s.

    Examples:
        >>> centre_crop((375, 500), (224, 224))
        ((256, 341), (16, 58))
    """
    if not 0 < crop <= 1:
        raise ValueError(f"crop={crop}: the share of the side that is kept lies in (0, 1]")
    covered_height, covered_width = (int(side / crop) for side in image_size)
    height, width = source_size
    # In whole numbers: a scale as a float made one side in thousands a pixel too short.
    if covered_height * width >= covered_width * height:
        scaled_size = (covered_height, covered_height * width // height)
    else:
        scaled_size = (covered_width * height // width, covered_width)
    if offset not in ("even", "down"):
        raise ValueError(f'offset={offset!r}: must be "even" or "down"')
    halve = (lambda margin: margin // 2) if offset == "down" else (lambda margin: round(margin / 2))
    top, left = (halve(scaled - side) for scaled, side in zip(scaled_size, image_size, strict=True))
    return scaled_size, (top, left)


def resize(
    image: ImageArray,
    image_size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    box: tuple[float, float, float, float] | None = None,
) -> ImageArray:
    """Scale an image, or the box (left, top, right, bottom) of it, to image_size = (height, width)."""
    if interpolation not in RESAMPLING:
        raise ValueError(f"interpolation={interpolation!r}: one of {', '.join(RESAMPLING)} is known")
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    resized = picture.resize((image_size[1], image_size[0]), RESAMPLING[interpolation], box=box)
    return np.asarray(resized).reshape(*image_size, image.shape[-1])


def _open(content: bytes, name: str) -> Image.Image:
    """Image.open, except that too large an image is refused with its size, before anything is decoded."""
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        image = _open_unchecked(content)
    if image.width * image.height > MAXIMUM_PIXELS:
        raise LargeImage(name, f"too large: {image.width} x {image.height} pixels")
    return image


def _open_unchecked(content: bytes) -> Image.Image:
    """Open it by the format's own reader: Pillow's error for a huge image does not say how large it is."""
    for reader, accepts in Image.OPEN.values():
        if accepts is None or accepts(content[:16]) is True:
            return reader(io.BytesIO(content), "")
    raise UnidentifiedImageError


def unknown_format(content: bytes) -> str:
    """Return in words what is sent or kept in place of an image."""
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        return "a HEIC photo, which is not read: convert it to JPEG or PNG"
    return "not an image of a known format"


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block does not make the picture unreadable
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _to_array(picture: Image.Image, channels: int) -> ImageArray:
    mode = MODES[channels]
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    elif picture.mode != "RGB" and channels == 1 and picture.mode not in ("1", "L"):
        picture = picture.convert("RGB")  # not every mode has a direct way to grey
    picture = picture if picture.mode == mode else picture.convert(mode)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _to_eight_bits(samples: NDArray[Any]) -> ImageArray:
    """Wide grey samples to 8 bits: floats from 0..1, integers from 0..65535 unless all fit already."""
    if samples.dtype.kind == "f":
        scaled = samples * 255.0 if samples.max(initial=0) <= 1 else samples.astype(np.float64)
    elif samples.dtype.itemsize == 2 or samples.max(initial=0) > 255:
        scaled = samples / 257.0
    else:
        scaled = samples.astype(np.float64)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
