"""The image files of a folder or of a zip file, seen the same way: names and bytes."""

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from groupwise.data.images import BrokenImage
from groupwise.errors import UserError

IMAGE_KINDS = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm pnm jp2 tga avif"
IMAGE_SUFFIXES = frozenset("." + kind for kind in IMAGE_KINDS.split())
UTF8_FLAG = 1 << 11  # of a zip file's member
LARGEST_MEMBER = 1 << 30  # bytes of one file once decompressed; no image below the pixel limit comes near it


@dataclass(frozen=True)
class ImageFiles:
    """Image files by name.

    Attributes:
        names: their paths below the folder or in the zip file, with forward slashes, sorted.
        read: a name to the file's bytes; it raises BrokenImage, and may be called from many threads.
        size: a name to how many bytes these are; 0 where they cannot be read.
    """

    names: list[str]
    read: Callable[[str], bytes]
    size: Callable[[str], int]


def is_image_name(name: str) -> bool:
    """Whether a path is that of an image, by its suffix, and nothing that a system hides or leaves behind."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def refuse_climbing(name: str, archive: Path) -> None:
    """Raises UserError for an archive's member whose path leads out of the archive's own folder."""
    path = PureWindowsPath(name)  # which knows both slashes and drives
    if path.anchor or ".." in path.parts:
        raise UserError(f"{archive}: refused, since its member {name!r} climbs out of the archive")


def files_in_folder(folder: Path) -> ImageFiles:
    """The image files below a folder, links followed."""
    names = []
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in visited:  # a link that leads to its own parent
            folders.clear()
            continue
        visited.add(place)
        relative = Path(parent).relative_to(folder)
        names += [(relative / file).as_posix() for file in files]

    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise BrokenImage(name, (error.strerror or "cannot be read").lower()) from error

    def size(name: str) -> int:
        try:
            return (folder / name).stat().st_size
        except OSError:
            return 0

    return ImageFiles(sorted(filter(is_image_name, names)), read, size)


def files_in_zip(path: Path) -> ImageFiles:
    """The image files in a zip file, which is read in place and never unpacked."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: not a readable zip file ({error})") from error
    members = {}
    for member in archive.infolist():
        refuse_climbing(member.orig_filename, path)
        if member.flag_bits & 1:
            raise UserError(f"{path}: its member {member.filename!r} is encrypted; unpack it first")
        name = _name_of(member)
        if not member.is_dir() and is_image_name(name):
            members[name] = member

    def read(name: str) -> bytes:
        member = members[name]
        if member.file_size > LARGEST_MEMBER:
            raise BrokenImage(name, f"too large: {member.file_size} bytes")
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise BrokenImage(name, f"damaged in the zip file ({error})") from error

    return ImageFiles(sorted(members), read, lambda name: members[name].file_size)


def _name_of(member: zipfile.ZipInfo) -> str:
    """A member's name as it was meant: Windows may write backslashes, macOS writes UTF-8 without the flag for it."""
    name = member.filename.replace("\\", "/")
    if member.flag_bits & UTF8_FLAG:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name
