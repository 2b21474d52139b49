"""Folders that are splits and folders that are classes are told apart, or it is refused."""

import zipfile

import pytest

from groupwise.data import load_dataset
from groupwise.data.layout import find_layout
from groupwise.errors import UserError

pytestmark = pytest.mark.once


def entries_of(folders, root=""):
    """An image in each of these folders, "train/a test/a", as path's parts and name."""
    names = [f"{root}{folder}/0.png" for folder in folders.split()]
    return [(tuple(name.split("/")), name) for name in names]


def roles_of(layout):
    """Each split's folders."""
    return {role: {name.rsplit("/", 1)[0] for _, name in entries} for role, entries in layout.by_role.items()}


@pytest.mark.parametrize("root", ["", "photos/", "very/deep/"])
@pytest.mark.parametrize(
    ("train", "test", "validation"),
    [
        ("train", "test", ""),
        ("TRAIN", "Test", ""),
        ("Training", "Testing", "Validation"),
        ("train", "val", ""),
        ("train", "eval", ""),
        ("train", "test", "eval"),
        ("train", "eval", "dev"),
        ("train", "test", "valid"),
        ("train_set", "test_set", "val_set"),
        ("trainset", "testset", "valset"),
        ("TrainingSet", "TestSet", "ValidationSet"),
        ("x_train", "x_test", "x_val"),
        ("train-images", "test-images", ""),
        ("train2017", "val2017", ""),
        ("dogs_train", "dogs_test", ""),
        ("seg_train/seg_train", "seg_test/seg_test", ""),
        ("train/images", "test/images", ""),
    ],
)
def test_the_names_of_splits(root, train, test, validation):
    splits = {"train": train, "test": test} | ({"validation": validation} if validation else {})
    folders = " ".join(f"{folder}/{name}" for folder in splits.values() for name in ("a", "b"))
    layout = find_layout("set", entries_of(folders, root))
    found = roles_of(layout)
    if "test" not in found:  # validation takes its place
        found["test"] = found.pop("validation")
    assert found == {role: {f"{root}{folder}/{name}" for name in "ab"} for role, folder in splits.items()}
    assert {parts[0] for entries in layout.by_role.values() for parts, _ in entries} == {"a", "b"}
    assert layout.notes == []


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ("unlabeled", "unlabeled"),
        ("predict/unknown", "predict"),
        ("seg_pred/seg_pred", "seg_pred"),
        ("backup/a", "backup"),
        ("train_old/a train_old/b", "train_old"),
        ("train_augmented/a test_large", "test_large', 'train_augmented"),
        ("set/train/a set/test/a", "set"),
        ("anything", "anything"),
    ],
)
def test_other_folders_beside_splits_are_left_out_and_named(beside, named):
    layout = find_layout("set", entries_of(f"train/a train/b test/a test/b {beside}"))
    assert roles_of(layout) == {"train": {"train/a", "train/b"}, "test": {"test/a", "test/b"}}
    assert layout.notes == [f"set: left out is what lies beside its splits, 'test', 'train': '{named}'"]


def test_test_images_without_labels_leave_the_test_to_the_validation():
    for unlabelled in ("test", "test/test"):
        layout = find_layout("set", entries_of(f"train/a train/b val/a val/b {unlabelled}"))
        assert roles_of(layout) == {"train": {"train/a", "train/b"}, "validation": {"val/a", "val/b"}}
        assert "'test'" in layout.notes[0]


def test_training_images_alone_are_the_data_set():
    layout = find_layout("set", entries_of("train/a train/b unlabeled"))
    assert roles_of(layout) == {"train": {"train/a", "train/b"}}
    assert find_layout("set", entries_of("train/a train/b")).notes == []


def test_splits_within_classes():
    layout = find_layout("set", entries_of("a/train a/test b/train b/test"))
    assert roles_of(layout) == {"train": {"a/train", "b/train"}, "test": {"a/test", "b/test"}}
    assert sorted(parts for parts, _ in layout.by_role["train"]) == [("a", "0.png"), ("b", "0.png")]


@pytest.mark.parametrize(
    ("strays", "note"),
    [
        ("a/unlabeled", "its splits, 'test', 'train': 'unlabeled'"),
        ("a/train_old b/unlabeled", "its splits, 'test', 'train': 'train_old', 'unlabeled'"),
        ("unlabeled", "its classes: 'unlabeled'"),
        ("backup/x", "its classes: 'backup'"),
    ],
)
def test_strays_within_and_beside_classes_of_splits_are_left_out_and_named(strays, note):
    layout = find_layout("set", entries_of(f"a/train a/test b/train b/test {strays}"))
    assert roles_of(layout) == {"train": {"a/train", "b/train"}, "test": {"a/test", "b/test"}}
    assert layout.notes == [f"set: left out is what lies beside {note}"]


@pytest.mark.parametrize(("root", "holder"), [("", "data"), ("top/", "data"), ("", "data/images")])
@pytest.mark.parametrize(
    ("strays", "named"),
    [("extras", "'extras'"), ("sample/x", "'sample'"), ("backup/a x/y/z", "'backup', 'x'")],
)
def test_one_folder_that_holds_the_splits_is_looked_through(root, holder, strays, named):
    splits = [f"{holder}/{role}/{name}" for role in ("train", "test") for name in ("cat", "dog")]
    layout = find_layout("set", entries_of(" ".join([*splits, *strays.split()]), root))
    assert roles_of(layout) == {
        role: {f"{root}{holder}/{role}/{name}" for name in ("cat", "dog")} for role in ("train", "test")
    }
    assert layout.notes == [f"set: left out is what lies beside 'data', which holds its splits: {named}"]


def test_two_data_sets_in_one_are_named():
    layout = find_layout(
        "set", entries_of(" ".join(f"{d}/{r}/{c}" for d in "xy" for r in ("train", "test") for c in "ab"))
    )
    assert layout.notes == ["set: its classes are 'x', 'y', not the folders in each: 'a', 'b'"]


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        ("train bus car", "taken for classes, not for splits, as the folders beside are: 'train'"),
        ("train test bus", "taken for classes, not for splits, as the folders beside are: 'test', 'train'"),
        ("Train dev bus", "taken for classes, not for splits, as the folders beside are: 'Train', 'dev'"),
        ("test bus/old bus/new car", "taken for classes, not for splits, as the folders beside are: 'test'"),
        ("test_tube beaker", None),
        ("cat dog backup", "taken for classes, whatever their names say: 'backup'; take out what is none"),
        (
            "cat dog/x unlabeled_images",
            "taken for classes, whatever their names say: 'unlabeled_images'; take out what is none",
        ),
        ("old_castle new_castle", None),
        ("cat dog", None),
        ("cat/x cat/y dog/x", None),
        (
            "fold1/cat fold1/dog fold2/cat fold2/dog",
            "its classes are 'fold1', 'fold2', not the folders in each: 'cat', 'dog'",
        ),
    ],
)
def test_classes_may_have_the_names_of_splits(folders, note):
    layout = find_layout("set", entries_of(folders))
    assert {parts[0] for parts, _ in layout.by_role["train"]} == {folder.split("/")[0] for folder in folders.split()}
    assert (list(layout.by_role), layout.notes) == (["train"], [f"set: {note}"] if note else [])


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        ("train/a train/b bus car", "are these splits or classes: 'train'"),
        ("train/a train/b bus/a bus/b", "are these splits or classes: 'train'"),
        ("train/a train/b test/a test/b bus/a bus/b", "are these splits or classes: 'test', 'train'"),
        ("train test bus/a bus/b", "are these splits or classes: 'test', 'train'"),
        ("val/a val/b test/a test/b", "are these splits or classes: 'test', 'val'"),
        ("cat_train cat_test dog_train dog_test", "are these splits or classes: 'cat_train', 'dog_train'"),
        (
            "train/a train/b val/a val/b validation/a validation/b",
            "'val', 'validation' may all be its validation",
        ),
        ("train/a train/b test", "its test folder holds images but no class folders"),
        ("train test unlabeled", "its test folder holds images but no class folders"),
        ("a/train a/test b/train b/test a/extra", "are these splits or classes: 'test', 'train'"),
        ("a/train a/test b/train b/test owl", "are these splits or classes: 'a/test', 'a/train', 'owl'"),
        ("a/a_train a/a_test b/b_train b/b_test", "are these splits or classes: 'a/a_test', 'a/a_train'"),
        ("set/train/a set/train/b set/test/a set/test/b a b", "classes: 'set/test', 'set/train', 'a', 'b'"),
        ("set/train/a set/train/b set/test/a set/test/b x/a", "classes: 'set/test', 'set/train', 'x'"),
    ],
)
def test_what_may_be_either_is_refused(folders, says):
    with pytest.raises(UserError, match=says):
        find_layout("set", entries_of(folders))


def test_classes_that_are_written_nearly_alike_are_named(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("red fox/0.png", "red fox/1.png", "Red_fox/0.png", "dog/0.png"):
            archive.writestr(name, b"")
    assert load_dataset(path).notes == ("set.zip: 'Red_fox', 'red fox' are taken for different classes",)


def test_the_classes_of_splits_are_matched_by_name_and_notes_arrive(tmp_path):
    path = tmp_path / "set.zip"
    names = ("Train/Caf\u00e9/0.png", "Train/tea/0.png", "test/cafe\u0301/0.png", "test/Tea/0.png", "extra/0.png")
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"wrapped/{name}", b"")
        archive.writestr("wrapped/Train/0.png", b"")
        archive.writestr("__MACOSX/wrapped/test/tea/._0.png", b"")
    dataset = load_dataset(path)
    assert dataset.class_names == ("Caf\u00e9", "tea")
    assert {name: int(label) for name, label in zip(dataset.test.names, dataset.test.labels, strict=True)} == {
        "wrapped/test/Tea/0.png": 1,
        "wrapped/test/cafe\u0301/0.png": 0,
    }
    assert dataset.notes == (
        "set.zip: left out is what lies beside its splits, 'Train', 'test': 'extra'",
        "set.zip: left out, since in no class's folder: 1 .png",
    )
