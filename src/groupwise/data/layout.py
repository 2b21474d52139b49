"""Which folders of a data set are its splits, and which its classes."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from groupwise.data.classes import normal_form, some
from groupwise.errors import UserError
from groupwise.texts import quoted

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

    Folders that hold everything are looked through, as is the one that holds the splits. These are known by their
    names, in any case, if what they hold are class folders; other folders beside them are left out, which a note says.

    Raises:
        UserError: there are no class folders, or it cannot be told whether folders are splits or classes.
    """
    folders = _by_first(_below_common_folders(entries))
    if not folders:
        raise UserError(f"{name} holds images but no class folders: put each class's images into a folder")
    splits = _splits_by_name(name, folders)
    notes: list[str] = []
    if not splits and _has_splits_within(folders):
        folders, notes = _splits_first(name, folders)
        splits = _splits_by_name(name, folders)
    elif not splits and (holder := _holder_of_splits(name, folders)):
        notes = [_left_out(name, f"{quoted(holder)}, which holds its splits", set(folders) - {holder})]
        layout = find_layout(name, folders[holder])
        return Layout(layout.by_role, notes + layout.notes)
    folders = {folder: _below_same_role(folder, part) for folder, part in folders.items()}
    classes = _are_classes(name, folders, splits)
    layout = _layout_of_classes(name, folders) if classes else _layout_of_splits(name, folders, splits)
    layout.notes[:0] = notes
    return layout


def _below_common_folders(entries: list[Entry]) -> list[Entry]:
    """Take away the folders that hold all others, as long as two levels are left: class and file."""
    while len({parts[0] for parts, _ in entries if len(parts) > 1}) == 1 and any(
        len(parts) > 2 for parts, _ in entries
    ):
        entries = [(parts[1:], file) for parts, file in entries if len(parts) > 1]
    return entries


def _by_first(entries: Iterable[Entry]) -> Folders:
    """Return the entries below each folder; images outside of one are left out."""
    folders: Folders = defaultdict(list)
    for parts, file in entries:
        if len(parts) > 1:
            folders[parts[0]].append((parts[1:], file))
    return dict(folders)


def role_of(folder: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that a folder's name says and what else it says: ("train", ("2017",)); None if not just one."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", folder)
    words = re.findall(r"[^\W\d_]+|\d+", GLUED.sub(r"\1 \2", normal_form(spaced)))
    found = {ROLES[word] for word in words if word in ROLES}
    rest = tuple(word for word in words if word not in ROLES and word not in FILLERS)
    return (found.pop(), rest) if len(found) == 1 and not ASIDE & set(rest) else None


def _is_bare(folder: str) -> bool:
    """Return whether a folder's name says a split and nothing else."""
    said = role_of(folder)
    return said is not None and not said[1]


def _is_aside(folder: str) -> bool:
    """Return whether a folder's name says that it holds neither a split nor a class."""
    return bool(ASIDE & set(re.findall(r"[^\W\d_]+", normal_form(folder))))


def _is_only_aside(folder: str) -> bool:
    """Return whether a folder's name says nothing else."""
    words = set(re.findall(r"[^\W\d_]+", normal_form(folder)))
    return bool(words & ASIDE) and words <= ASIDE | FILLERS | ROLES.keys()


def _is_nested(part: list[Entry]) -> bool:
    return any(len(parts) > 1 for parts, _ in part)


def _below_same_role(folder: str, part: list[Entry]) -> list[Entry]:
    """Return what lies below seg_train/seg_train/, or below train/images/."""
    said = role_of(folder)
    while said and len(inner := {parts[0] for parts, _ in part}) == 1 and _is_nested(part):
        inside = role_of(next(iter(inner)))
        if normal_form(*inner) not in FILLERS and (inside is None or inside[0] != said[0]):
            break
        part = [(parts[1:], file) for parts, file in part]
    return part


def _has_splits_within(folders: Folders) -> bool:
    """Return whether each class holds its splits, class/train/... and class/test/...; others in it are none."""
    classes = [set(_by_first(part)) for folder, part in folders.items() if not _is_aside(folder)]
    inner = {role_of(folder) for within in classes for folder in within}
    bare = {said for said in inner if said is not None and not said[1]}
    alone = inner == bare and not any(len(parts) == 1 for part in folders.values() for parts, _ in part)
    return len(classes) > 1 and ("train", ()) in bare and len(bare) > 1 and (alone or all(map(_are_splits, classes)))


def _are_splits(folders: Iterable[str]) -> bool:
    """Return whether folders of these names are training images and others, of the same other words."""
    roles: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for said in map(role_of, folders):
        if said is not None:
            roles[said[1]].add(said[0])
    return any("train" in found and len(found) > 1 for found in roles.values())


def _splits_first(name: str, folders: Folders) -> tuple[Folders, list[str]]:
    """Return folders of splits that hold classes, from those of classes that hold splits, and what is left out."""
    aside = sorted(folder for folder in folders if not _are_splits(_by_first(folders[folder])) and _is_aside(folder))
    inner = ((folder, parts, file) for folder, part in folders.items() if folder not in aside for parts, file in part)
    turned = _by_first(((parts[0], folder, *parts[1:]), file) for folder, parts, file in inner if len(parts) > 1)
    classes = _by_first(entry for folder, part in turned.items() if role_of(folder) == ("train", ()) for entry in part)
    notes = [_left_out(name, "its classes", aside)] * bool(aside)
    return turned, notes + _same_within(name, classes)


def _holder_of_splits(name: str, folders: Folders) -> str | None:
    """Return the one folder that holds splits of class folders, where others lie beside it; None where no folder is it.

    Raises:
        UserError: it cannot be told, since the others may be its classes, or hold splits themselves.
    """
    within = {folder: _by_first(_below_common_folders(part)) for folder, part in folders.items()}
    holders = [folder for folder in folders if _are_splits(within[folder]) and not _is_aside(folder)]
    others = [folder for folder in folders if folder not in holders and not _is_aside(folder)]
    if not holders:
        return None
    splits = within[holders[0]]
    classes = {parts[0] for part in splits.values() for parts, _ in part if len(parts) > 1}
    may_be_classes = any(classes & {other, *within[other]} for other in others)
    if len(holders) > 1 or not classes or may_be_classes:
        raise _ambiguous(name, [f"{holders[0]}/{folder}" for folder in sorted(splits)] + sorted(others))
    return holders[0]


def _splits_by_name(name: str, folders: Folders) -> dict[str, list[str]]:
    """Return the folders of each split by their names: train and another, of the same other words; or nothing.

    Raises:
        UserError: there are several such pairs.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in sorted(folders):
        said = role_of(folder)
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
    """Return whether the folders are classes although some may have the names of splits.

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
    strangers = [folder for folder in others if not _is_aside(folder) and role_of(folder) is None]
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
    notes = [f"{name}: taken for classes, not for splits, as the folders beside are: {some(bare)}"] * bool(bare)
    aside = sorted(filter(_is_only_aside, folders))
    if aside:
        notes.append(f"{name}: taken for classes, whatever their names say: {some(aside)}; take out what is none")
    return Layout({"train": entries}, notes + _same_within(name, folders))


def _same_within(name: str, classes: Folders) -> list[str]:
    """Return a note where all classes hold folders of the same names, which might be the classes."""
    within = [frozenset(_by_first(part)) for part in classes.values()]
    if len(within) < 2 or len(within[0]) < 2 or len(set(within)) > 1:
        return []
    return [f"{name}: its classes are {some(sorted(classes))}, not the folders in each: {some(sorted(within[0]))}"]


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
        layout.notes.append(_left_out(name, f"its splits, {some(chosen.values())}", aside))
    return layout


def _left_out(name: str, what: str, beside: Iterable[str]) -> str:
    return f"{name}: left out is what lies beside {what}: {some(sorted(beside))}"
