"""Files beside the images that are not read: refused where a class would be gone without them, else a note."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from groupwise.data.classes import some
from groupwise.data.files import OTHER_PICTURE_SUFFIXES, ImageFiles, folders_holding, suffix_of, tells_nothing
from groupwise.data.layout import role_of
from groupwise.errors import UserError
from groupwise.texts import quoted

LARGEST_SHARE = 0.1
NAMED_FOLDERS = 5
CONVERT = "convert them to JPEG or PNG"
TEXTS = "txt md rst xml json jsonl csv tsv yaml yml toml ini cfg log html htm pdf py ipynb sh url lnk xmp aae"
TEXT_SUFFIXES = frozenset("." + kind for kind in TEXTS.split())


def kinds(names: Iterable[str]) -> str:
    """Return how many files there are of each ending.

    Examples:
        >>> kinds(["a.HEIC", "b.heic", "c", "d.mov"])
        '2 .heic, 1 .mov, 1 without an ending'
    """
    endings = Counter("" if tells_nothing(name) else suffix_of(name) for name in names)
    counts = [f"{count} {ending}" for ending, count in sorted(endings.items()) if ending]
    return ", ".join(counts + [f"{endings['']} without an ending"] * bool(endings[""]))


def no_images(name: str, left_out: Sequence[str]) -> UserError:
    """Return what to raise where a folder holds no image, but perhaps other files."""
    if not left_out:
        return UserError(f"{name} is empty: it holds no images")
    return UserError(f"{name} holds no images that can be read, but {kinds(left_out)}: {CONVERT}")


def check_left_out(name: str, files: ImageFiles, class_sizes: Mapping[str, int]) -> list[str]:
    """Look at the files of a data set that are not read, class by class.

    Args:
        name: the data set's.
        files: all of them.
        class_sizes: how many images each class's folder holds.

    Returns:
        Sentences that say what is left out.

    Raises:
        UserError: nothing of a folder beside the classes' or beside a split's can be read, or more than one and over a
            tenth of a class's pictures cannot.
    """
    places = {PurePosixPath(folder).parent for folder in class_sizes}  # that hold the classes' folders
    is_split = _lost_splits(files.names)

    def is_beside(folder: PurePosixPath) -> bool:
        return folder.parent in places or is_split(folder)

    lost = _by_folder(files.left_out, class_sizes, is_beside)
    read = {_stem(image) for image in files.names}
    gone = {}
    for folder, names in lost.items():
        if folder and folder not in class_sizes:
            is_gone = any(suffix_of(it) not in TEXT_SUFFIXES for it in names)
        else:
            # A camera's raw file beside the JPEG of the same name loses nothing.
            pictures = sum(_is_picture_name(it) and _stem(it) not in read for it in names)
            is_gone = pictures > max(1, LARGEST_SHARE * (class_sizes.get(folder, len(read)) + pictures))
        if is_gone:
            gone[folder] = names
    if gone:
        raise UserError(
            f"{name}: too much cannot be read: {_counts(gone, class_sizes)}: {CONVERT}, or take them out of the folder"
        )
    notes = [f"{name}: left out, since they cannot be read: {_counts(lost, class_sizes)}"] if lost else []
    outside = {"" if place == PurePosixPath() else str(place) for place in places}
    beside = [image for image in files.names if image.rpartition("/")[0] in outside]
    if beside:
        notes.append(f"{name}: left out, since in no class's folder: {kinds(beside)}")
    empty = [name for name in files.empty if is_beside(PurePosixPath(name))]
    if empty:
        notes.append(f"{name}: left out, since empty: {some(empty)}")
    return notes


def _by_folder(
    left_out: Iterable[str], class_sizes: Mapping[str, int], is_beside: Callable[[PurePosixPath], bool]
) -> dict[str, list[str]]:
    """Return the files by the folder of, or beside, a class or a split; "" for all other places.

    Of these pictures alone count. Texts count where they are all that a folder holds.
    """
    lost: dict[str, list[str]] = defaultdict(list)
    for name in left_out:
        path = PurePosixPath(name)
        folders = [it for it in path.parents if it.parts]
        folder = next((str(it) for it in folders if is_beside(it)), "")
        if folder:
            counts = folder not in class_sizes or suffix_of(name) not in TEXT_SUFFIXES
        else:
            counts = suffix_of(name) in OTHER_PICTURE_SUFFIXES or (tells_nothing(name) and len(path.parts) > 1)
        if counts:
            lost[folder].append(name)
    return lost


def _lost_splits(images: Iterable[str]) -> Callable[[PurePosixPath], bool]:
    """Return what tells whether a folder is called a split, lies beside one, and holds no image."""
    holding = folders_holding(images)
    beside = {folder.parent for folder in holding if role_of(folder.name)}
    return lambda folder: folder.parent in beside and folder not in holding and role_of(folder.name) is not None


def _counts(lost: Mapping[str, Sequence[str]], class_sizes: Mapping[str, int]) -> str:
    texts = []
    for folder, names in list(lost.items())[:NAMED_FOLDERS]:
        total = class_sizes.get(folder, 0) + len(names)
        texts.append(kinds(names) + (f" in {quoted(folder)} (of {total} files)" if folder else " elsewhere"))
    more = len(lost) - NAMED_FOLDERS
    return "; ".join(texts) + (f"; and more in {more} other folders" if more > 0 else "")


def _is_picture_name(name: str) -> bool:
    return tells_nothing(name) or suffix_of(name) in OTHER_PICTURE_SUFFIXES


def _stem(name: str) -> str:
    return name[: len(name) - len(suffix_of(name))]
