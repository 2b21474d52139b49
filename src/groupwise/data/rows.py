"""A row of a table, or a record, as a shard has it: the files of a sample."""

import io

from PIL import Image

from groupwise.data.files import IMAGE_SUFFIXES, suffix_of


def files_of_row(image: bytes, path: str | None, label: str, number: str, keys: set[str]) -> dict[str, bytes]:
    """Return an image and its class as files by name, which both begin with the sample's key.

    Args:
        image: of an image file.
        path: its name, which becomes the key where no other has it.
        label: the class.
        number: the key otherwise.
        keys: those that there are; the sample's is added.

    Examples:
        >>> sorted(files_of_row(b"...", "n01440764/n01440764_36.JPEG", "tench", "train/00000000", set()))
        ['n01440764/n01440764_36.cls', 'n01440764/n01440764_36.jpeg']
    """
    suffix = suffix_of(path or "")
    key = path[: len(path) - len(suffix)].replace(".", "_").strip("/") if path else number
    key = number if key in keys else key
    keys.add(key)
    if suffix not in IMAGE_SUFFIXES:
        suffix = _suffix(image)
    return {f"{key}{suffix}": image, f"{key}.cls": label.encode()}


def _suffix(content: bytes) -> str:
    try:
        with Image.open(io.BytesIO(content)) as image:
            suffix = f".{str(image.format).lower()}"
    except Exception:  # whoever decodes the image names the reason
        return ".jpg"
    return suffix if suffix in IMAGE_SUFFIXES else ".jpg"
