"""Which folders of a data set are its splits, and which its classes."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from groupwise.data.classes import normal_form, some
from groupwise.errors import UserError

# A file by its path's parts below a folder, and its whole name.
Entry: TypeAlias = tuple[tuple[str, ...], str]
Folders: TypeAlias = dict[str, list[Entry]]

# The words that folders of splits go by. What is evaluated on is the test, unless there is another one.
ROLES = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev"), "validation"),
    **dict.fromkeys(("eval", "evaluation"), "evaluation"),
}
# Words that may stand beside them and mean nothing, and words of folders that are neither a split nor a class.
FILLERS = {
    *("set", "sets", "data", "dataset", "split", "folder", "seg", "x"),
    *("image", "images", "img", "imgs", "photos", "pictures"),
}
ASIDE = {
    *("unlabeled", "unlabelled", "unsupervised", "pred", "preds", "predict", "prediction", "predictions"),
    *("inference", "submission", "backup", "bak", "old", "copy"),
}
GLUED = re.compile(f"({'|'.join(sorted(ROLES, key=len, reverse=True))})({'|'.join(sorted(FILLERS))})")


@dataclass
class Layout:
    """The files as class/..., of each split that there is.

    Attributes:
        by_role: "train", and perhaps "test" and "validation", to entries of two parts or more.
        notes: sentences on what is left out, or might not be what was meant.
    """

    by_role: Folders
    notes: list[str] = field(default_factory=list)


def find_layout(name: str, entries: list[Entry]) -> Layout:
    """Return how a data set is laid out: class/..., or split/class/..., or class/split/...

    Folders that hold everything are looked through. Splits are known by their names, in any case, if what they hold
    are class folders; other folders beside them are left out, which a note says.

    Raises:
        UserError: there are no class folders, or it cannot be told whether folders are splits or classes.
    """
    folders = _by_first(_below_common_folders(entries))
    if not folders:
        raise UserError(f"{name} holds images but no class folders: put each class's images into a folder")
    splits = _splits_by_name(name, folders)
    if not splits and _has_splits_within(folders):
        inner = ((folder, parts, file) for folder, part in folders.items() for parts, file in part)
        folders = _by_first(((parts[0], folder, *parts[1:]), file) for folder, parts, file in inner)
        splits = _splits_by_name(name, folders)
    folders = {folder: _below_same_role(folder, part) for folder, part in folders.items()}
    if _are_classes(name, folders, splits):
        return _layout_of_classes(name, folders)
    return _layout_of_splits(name, folders, splits)


def _below_common_folders(entries: list[Entry]) -> list[Entry]:
    """Takes away the folders that hold all others, as long as two levels are left: class and file."""
    while len({parts[0] for parts, _ in entries if len(parts) > 1}) == 1 and any(
        len(parts) > 2 for parts, _ in entries
    ):
        entries = [(parts[1:], file) for parts, file in entries if len(parts) > 1]
    return entries


def _by_first(entries: Iterable[Entry]) -> Folders:
    """The entries below each folder; images outside of one are left out."""
    folders: Folders = defaultdict(list)
    for parts, file in entries:
        if len(parts) > 1:
            folders[parts[0]].append((parts[1:], file))
    return dict(folders)


def _role(folder: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a folder's name says and what else it says, such as ("train", ("2017",)); None if not just one."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder)
    words = re.findall(r"[^\W\d_]+|\d+", GLUED.sub(r"\1 \2", normal_form(spaced)))
    found = {ROLES[word] for word in words if word in ROLES}
    rest = tuple(word for word in words if word not in ROLES and word not in FILLERS)
    return (found.pop(), rest) if len(found) == 1 and not ASIDE & set(rest) else None


def _is_bare(folder: str) -> bool:
    """Whether a folder's name says a split and nothing else."""
    said = _role(folder)
    return said is not None and not said[1]


def _is_aside(folder: str) -> bool:
    """Whether a folder's name says that it holds neither a split nor a class."""
    return bool(ASIDE & set(re.findall(r"[^\W\d_]+", normal_form(folder))))


def _is_nested(part: list[Entry]) -> bool:
    return any(len(parts) > 1 for parts, _ in part)


def _below_same_role(folder: str, part: list[Entry]) -> list[Entry]:
    """What lies below seg_train/seg_train/, or below train/images/."""
    said = _role(folder)
    while said and len(inner := {parts[0] for parts, _ in part}) == 1 and _is_nested(part):
        inside = _role(next(iter(inner)))
        if normal_form(*inner) not in FILLERS and (inside is None or inside[0] != said[0]):
            break
        part = [(parts[1:], file) for parts, file in part]
    return part


def _has_splits_within(folders: Folders) -> bool:
    """Whether each class's folder holds its splits: class/train/..., class/test/..."""
    inner = {parts[0] if len(parts) > 1 else "" for part in folders.values() for parts, _ in part}
    said = {_role(folder) for folder in inner}
    return len(folders) > 1 and ("train", ()) in said and len(said) > 1 and all(map(_is_bare, inner))


def _splits_by_name(name: str, folders: Folders) -> dict[str, list[str]]:
    """The folders of each split by their names: train and another one, of the same other words. Empty if there is none.

    Raises:
        UserError: there are several such pairs.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in sorted(folders):
        said = _role(folder)
        if said is not None:
            groups[said[1]][said[0]].append(folder)
    for group in groups.values():
        if "evaluation" in group:
            group["validation" if "test" in group else "test"] += group.pop("evaluation")
    complete = {rest: group for rest, group in groups.items() if "train" in group and len(group) > 1}
    if not complete and "train" in groups[()] and all(map(_is_aside, set(folders) - set(groups[()]["train"]))):
        return groups[()]
    if len(complete) > 1 and () not in complete:
        raise _ambiguous(name, [folder for group in complete.values() for folder in group["train"]])
    return complete.get((), next(iter(complete.values()), {}))


def _are_classes(name: str, folders: Folders, splits: dict[str, list[str]]) -> bool:
    """Whether the folders are classes although some may have the names of splits.

    Raises:
        UserError: it cannot be told.
    """
    used = [folder for candidates in splits.values() for folder in candidates]
    others = [folder for folder in folders if folder not in used]
    nested = {folder for folder, part in folders.items() if _is_nested(part)}
    if not splits:
        suspects = sorted(folder for folder in nested if _is_bare(folder))
        if suspects:
            raise _ambiguous(name, suspects)
        return True
    strangers = [folder for folder in others if not _is_aside(folder) and _role(folder) is None]
    if not nested.issuperset(splits["train"]):
        if nested.intersection(strangers):
            raise _ambiguous(name, used)
        return bool(strangers)
    classes = {parts[0] for folder in splits["train"] for parts, _ in folders[folder] if len(parts) > 1}
    if any(classes & set(_by_first(folders[folder])) for folder in strangers):
        raise _ambiguous(name, used)
    return False


def _ambiguous(name: str, folders: list[str]) -> UserError:
    return UserError(
        f"{name}: are these splits or classes: {some(folders)}? Name splits train, test and val, with a folder for "
        "each class in them and nothing beside them; name classes otherwise"
    )


def _layout_of_classes(name: str, folders: Folders) -> Layout:
    entries = [((folder, *parts), file) for folder, part in folders.items() for parts, file in part]
    bare = sorted(filter(_is_bare, folders))
    within = [frozenset(_by_first(part)) for part in folders.values()]
    notes = [f"{name}: taken for classes, not for splits, as the folders beside are: {some(bare)}"] * bool(bare)
    if len(within) > 1 and len(within[0]) > 1 and len(set(within)) == 1:
        notes.append(
            f"{name}: its classes are {some(sorted(folders))}, not the folders in each: {some(sorted(within[0]))}"
        )
    return Layout({"train": entries}, notes)


def _layout_of_splits(name: str, folders: Folders, splits: dict[str, list[str]]) -> Layout:
    for role, candidates in splits.items():
        if len(candidates) > 1:
            raise UserError(f"{name}: {some(candidates)} may all be its {role} images: leave one")
    chosen = {role: candidates[0] for role, candidates in splits.items()}
    # Published test images often have no labels; those for validation then serve.
    if "validation" in chosen and not _is_nested(folders[chosen.get("test", chosen["train"])]):
        chosen.pop("test", None)
    layout = Layout({})
    for role, folder in chosen.items():
        layout.by_role[role] = [entry for entry in folders[folder] if len(entry[0]) > 1]
        if not layout.by_role[role]:
            raise UserError(f"{name}: its {folder} folder holds images but no class folders, so no labels")
    aside = sorted(set(folders) - set(chosen.values()))
    if aside:
        layout.notes.append(f"{name}: left out is what lies beside its splits, {some(chosen.values())}: {some(aside)}")
    return layout
