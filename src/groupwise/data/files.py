"""The image files of a folder or of a zip file, seen the same way: names and bytes."""

import os
import posixpath
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from groupwise.data.images import BrokenImage, is_picture, open_file, read_file
from groupwise.errors import UserError

IMAGE_KINDS = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm pnm jp2 tga avif"
IMAGE_SUFFIXES = frozenset("." + kind for kind in IMAGE_KINDS.split())
# Pictures by their names, though mostly of kinds that are not read: what is inside decides.
OTHER_PICTURES = (
    "heic heif hif heics heifs avci avifs jxl jxr mpo apng dib j2k jpf jpx "
    "svg psd dcm exr hdr dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw raw 3fr iiq x3f"
)
OTHER_PICTURE_SUFFIXES = frozenset("." + kind for kind in OTHER_PICTURES.split())
LEFT_BEHIND = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"))
LEFT_BEHIND |= frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
CAM_SUFFIX = ".cam.png"  # the pictures that `groupwise predict --cam` leaves beside images
UTF8_FLAG = 1 << 11  # of a zip file's member
LARGEST_MEMBER = 1 << 30  # bytes of one file once decompressed; no image below the pixel limit comes near it


@dataclass(frozen=True)
class ImageFiles:
    """Image files by name.

    Attributes:
        names: their paths below the folder or in the zip file, with forward slashes, sorted.
        read: a name to the file's bytes; it raises BrokenImage, and may be called from many threads.
        size: a name to how many bytes these are; 0 where they cannot be read.
        left_out: likewise the names of all other files, but for what systems hide or leave behind.
        empty: the names of folders that hold none of these files.
    """

    names: list[str]
    read: Callable[[str], bytes]
    size: Callable[[str], int]
    left_out: list[str]
    empty: list[str]


def is_hidden(name: str) -> bool:
    """Return whether a path leads through or to something that a system hides or leaves behind."""
    parts = [part for part in name.split("/") if part != "."]
    return any(part.startswith(".") or part.lower() in LEFT_BEHIND for part in parts)


def suffix_of(name: str) -> str:
    """Return a file's ending, in small letters: ".jpg" of photos/A.JPG."""
    return posixpath.splitext(name)[1].lower()


def parts_of(name: str) -> tuple[str, ...]:
    """Return the parts of a path with forward slashes: those of PurePosixPath, in a fifth of its time.

    Examples:
        >>> parts_of("./train/cat/1.jpg")
        ('train', 'cat', '1.jpg')
    """
    parts = name.split("/")
    return tuple(part for part in parts if part and part != ".") if "" in parts or "." in parts else tuple(parts)


def tells_nothing(name: str) -> bool:
    """Return whether a name has no ending, or none of a kind: frame.0001, or, of a download, photo.jpg?width=200."""
    suffix = suffix_of(name)
    return not suffix or suffix[1:].isdigit() or "?" in suffix


def refuse_climbing(name: str, archive: Path) -> None:
    """Raise UserError for an archive's member whose path leads out of the archive's own folder."""
    path = PureWindowsPath(name)  # which knows both slashes and drives
    if path.anchor or ".." in path.parts:
        raise UserError(f"{archive}: refused, since its member {name!r} climbs out of the archive")


def files_in_folder(folder: Path, recursive: bool = True) -> ImageFiles:
    """Return the image files of a folder and, if recursive, of all folders below it, links followed.

    Raises:
        UserError: a folder cannot be looked into.
    """

    def size(name: str) -> int:
        try:
            return (folder / name).stat().st_size
        except OSError:
            return 0

    return _sorted_out(
        _walk(folder, "", recursive, set()),
        lambda name: read_file(folder / name, name),
        size,
        lambda name: open_file(folder / name, name),
    )


def files_in_zip(path: Path) -> ImageFiles:
    """Return the image files in a zip file, which is read in place and never unpacked."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: not a readable zip file ({error})") from error
    members = {}
    folders = []
    for member in archive.infolist():
        refuse_climbing(member.orig_filename, path)
        if member.flag_bits & 1:
            raise UserError(f"{path}: its member {member.filename!r} is encrypted; unpack it first")
        name = _name_of(member)
        if is_hidden(name):
            continue
        if name.endswith("/"):
            folders.append(name)
        else:
            members[name] = member

    def read(name: str) -> bytes:
        member = members[name]
        if member.file_size > LARGEST_MEMBER:
            raise BrokenImage(name, f"too large: {member.file_size} bytes")
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
            raise BrokenImage(name, f"damaged in the zip file ({error})") from error

    names = [*folders, *members]
    return _sorted_out(names, read, lambda name: members[name].file_size, lambda name: archive.open(members[name]))


def with_utf8_names(files: ImageFiles) -> ImageFiles:
    """Return the same files by the names that they have where names are UTF-8, whatever the locale takes them for."""
    written = {_in_utf8(name): name for name in (*files.names, *files.left_out) if not name.isascii()}
    return ImageFiles(
        sorted(map(_in_utf8, files.names)),
        lambda name: files.read(written.get(name, name)),
        lambda name: files.size(written.get(name, name)),
        sorted(map(_in_utf8, files.left_out)),
        sorted(map(_in_utf8, files.empty)),
    )


def _in_utf8(name: str) -> str:
    """Return a name that `os.fsdecode` gave, from its bytes; what is no UTF-8 in it as `os.fsdecode` has that."""
    if name.isascii():
        return name
    try:
        return os.fsencode(name).decode("utf-8", sys.getfilesystemencodeerrors())
    except UnicodeError:
        return name


def _walk(folder: Path, prefix: str, recursive: bool, visited: set[Path]) -> Iterator[str]:
    """Files, and folders with a slash at the end, but for what is hidden.

    No folder comes twice, since links may lead to their own parents.
    """
    visited.add(folder.resolve())
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise UserError(f"{folder} cannot be looked into: {(error.strerror or str(error)).lower()}") from error
    for name, is_folder in found:
        if not is_folder:
            yield prefix + name
        elif recursive and (folder / name).resolve() not in visited:
            yield f"{prefix}{name}/"
            yield from _walk(folder / name, f"{prefix}{name}/", recursive, visited)


def _sorted_out(
    names: Iterable[str],
    read: Callable[[str], bytes],
    size: Callable[[str], int],
    open_named: Callable[[str], IO[bytes]],
) -> ImageFiles:
    images: list[str] = []
    left_out: list[str] = []
    folders: list[str] = []
    for name in sorted(names):
        if name.endswith("/"):
            folders.append(name)
        else:
            (images if _is_image(name, open_named) else left_out).append(name)
    holding = folders_holding((*images, *left_out))
    return ImageFiles(images, read, size, left_out, [it[:-1] for it in folders if PurePosixPath(it) not in holding])


def folders_holding(files: Iterable[str]) -> set[PurePosixPath]:
    """Return the folders in which, or below which, a file lies."""
    inner = {file.rpartition("/")[0] for file in files}  # few: paths of all files would take long
    return {folder for name in inner for folder in (PurePosixPath(name), *PurePosixPath(name).parents)}


def _is_image(name: str, open_named: Callable[[str], IO[bytes]]) -> bool:
    """Return whether a file is read as an image: by its ending, or by its content where the ending does not tell."""
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES:
        return not name.endswith(CAM_SUFFIX)
    if not tells_nothing(name) and suffix not in OTHER_PICTURE_SUFFIXES:
        return False
    try:
        with open_named(name) as file:
            return is_picture(file, with_tiff=tells_nothing(name))
    except (BrokenImage, OSError, zipfile.BadZipFile, NotImplementedError):
        return False


def _name_of(member: zipfile.ZipInfo) -> str:
    """Return a member's name as it was meant: Windows may write backslashes, macOS UTF-8 without its flag."""
    name = member.filename.replace("\\", "/")
    if member.flag_bits & UTF8_FLAG:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name
