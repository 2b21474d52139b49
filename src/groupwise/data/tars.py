"""The files in tar files, and in tar files in these: found once by their headers, then read by their places."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from groupwise.data.files import IMAGE_SUFFIXES, ImageFiles, is_hidden, refuse_climbing, suffix_of
from groupwise.data.images import BrokenImage
from groupwise.errors import UserError


class Member(NamedTuple):
    """A file in a tar file.

    Attributes:
        name: its path in the archive; of a tar file within, below that one's name without its ending.
        offset, size: of its bytes in the archive's file.
    """

    name: str
    offset: int
    size: int


def members_of(path: Path, nested: bool = False) -> list[Member]:
    """Return the files of a tar file that is not compressed, in their order.

    Args:
        path: of the tar file.
        nested: whether tar files in it are looked into.

    Raises:
        UserError: it cannot be read, or a member's name climbs out of it.
    """
    try:
        with path.open("rb") as file:
            return list(_members(file, path, nested))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable tar file without compression ({error})") from error


def _members(file: IO[bytes], path: Path, nested: bool) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            refuse_climbing(member.name, path)
            if nested and member.name.endswith(".tar"):
                inner = archive.extractfile(member)
                assert inner is not None  # it is a file
                for name, offset, size in _members(inner, path, nested):
                    yield Member(f"{member.name[:-4]}/{name}", member.offset_data + offset, size)
            else:
                yield Member(member.name, member.offset_data, member.size)


def read_member(path: Path, member: Member, name: str) -> bytes:
    """Return a file's bytes; called from many threads. Raises BrokenImage, with this name, where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
    except OSError as error:
        raise BrokenImage(name, (error.strerror or "cannot be read").lower()) from error
    if len(content) < member.size:
        raise BrokenImage(name, "truncated")
    return content


def files_in_tar(path: Path, nested: bool = False) -> ImageFiles:
    """Return the images in a tar file, which is read in place and never unpacked, by their endings."""
    members = {member.name: member for member in members_of(path, nested) if not is_hidden(member.name)}
    images = sorted(name for name in members if suffix_of(name) in IMAGE_SUFFIXES)
    return ImageFiles(
        images,
        lambda name: read_member(path, members[name], name),
        lambda name: members[name].size,
        sorted(members.keys() - set(images)),
        [],
    )
