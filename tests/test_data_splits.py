"""Which images are trained on and which tested on: settled by what they are, recorded, and found again."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupwise.data import Split, load_dataset
from groupwise.data.dataset import SplitRule
from groupwise.data.record import SplitRecord, changes_since, copies_in, divided_as_before, held_to, record_of
from groupwise.errors import UserError

pytestmark = pytest.mark.once
E_ACUTE = "\u00e9"


def write(root, names, extra=b""):
    """Files of these names below a folder; nobody opens them, so they hold their names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() + extra)
    return root


def photos(root, numbers, classes="ab"):
    return write(root, [f"{name}/{number:03}.png" for name in classes for number in numbers])


def sides(dataset):
    """Each image's side by its name."""
    return dict.fromkeys(dataset.train.names, "train") | dict.fromkeys(dataset.test.names, "test")


def hashed(*parts, seed=0):
    return int.from_bytes(blake2b(b"\0".join([b"%d" % seed, *parts]), digest_size=8).digest(), "big")


def test_the_hash_is_the_same_everywhere():
    def unread(index, side):
        raise AssertionError

    # Of `printf '0\0ant\0000.png' | b2sum -l 64`.
    split = Split(np.array([0]), ["ignored"], unread, lambda index: b"ant\x00000.png")
    assert split.hashes(0).tolist() == [0x6FD54B713C790018]
    assert split.hashes(1).tolist() == [hashed(b"ant\x00000.png", seed=1)]


@pytest.mark.parametrize("seed", [0, 3])
def test_an_image_s_side_is_settled_by_its_class_and_name(tmp_path, seed):
    dataset = load_dataset(photos(tmp_path / "photos", range(60)), seed=seed)
    tested = {
        f"{name}/{n:03}.png"
        for name in "ab"
        for n in range(60)
        if hashed(b"%s\0%03d.png" % (name.encode(), n), seed=seed) < 0.2 * 2**64
    }
    assert set(dataset.test.names) == tested
    assert len(dataset.train) == 120 - len(tested)


def test_images_that_come_and_go_move_no_others(tmp_path):
    root = photos(tmp_path / "photos", range(40))
    before = sides(load_dataset(root))
    photos(root, range(900, 960), "abc")
    after = sides(load_dataset(root))
    assert {name: after[name] for name in before} == before
    for number in range(0, 40, 2):
        (root / "a" / f"{number:03}.png").unlink()
    left = sides(load_dataset(root))
    assert {name: after[name] for name in left} == left
    smaller, larger = (set(load_dataset(root, test_fraction=share).test.names) for share in (0.1, 0.3))
    assert smaller < larger


def test_the_place_the_container_and_the_spelling_do_not_matter(tmp_path):
    names = [f"caf{E_ACUTE}_au_lait/sub/{n}{E_ACUTE}.jpg" for n in range(30)] + [f"tea/{n}.png" for n in range(30)]
    want = sorted(names.index(name) for name in load_dataset(write(tmp_path / "here", names)).test.names)
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    spelled = [name.upper().replace("_AU_", " au-") for name in names]
    for number, others in enumerate((names, decomposed, spelled)):
        dataset = load_dataset(write(tmp_path / f"moved{number}" / "deep" / "photos", others))
        assert sorted(others.index(name) for name in dataset.test.names) == want
    for number, others in enumerate((names, [name.replace("/", "\\") for name in decomposed])):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in zip(others, names, strict=True):
                archive.writestr(f"photos/{name}", content.encode())
            archive.writestr("__MACOSX/photos/tea/._0.png", b"")
        dataset = load_dataset(path)
        inside = [f"photos/{name}".replace("\\", "/") for name in others]
        assert sorted(inside.index(name) for name in dataset.test.names) == want


def test_a_zip_of_macos_has_utf_8_names_without_the_flag(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (f"t{E_ACUTE}/0.png", f"t{E_ACUTE}/1.png", "cafe/0.png"):
            archive.writestr(name, b"x")
    content = bytearray(path.read_bytes())
    for start in (position for position in range(len(content) - 1) if content[position : position + 2] == b"PK"):
        flags = {b"\x03\x04": 6, b"\x01\x02": 8}.get(bytes(content[start + 2 : start + 4]))
        if flags is not None:
            content[start + flags + 1] &= ~8
    path.write_bytes(content)
    assert load_dataset(path).class_names == ("cafe", f"t{E_ACUTE}")


KNOWN = """
import sys
from groupwise.data import load_dataset
from groupwise.data.record import record_of
dataset = load_dataset(sys.argv[1])
print(ascii((dataset.class_names, dataset.test.names, dataset.notes, record_of(dataset).as_dict())))
"""


def test_the_locale_does_not_matter(tmp_path):
    """A process may take names of UTF-8 for bytes that are no characters."""
    names = [f"caf{E_ACUTE}/{number}{E_ACUTE}.png" for number in range(20)] + [f"tea/{n}.png" for n in range(20)]
    root = write(tmp_path / "photos", [*names, f"t{E_ACUTE}/clip.txt"])
    if sys.platform == "linux":  # bytes that are no UTF-8 beside some that are
        (root / os.fsdecode(b"tea/\xe9_\xc3\xa9.png")).write_bytes(b"x")
    dataset = load_dataset(root)
    expected = ascii((dataset.class_names, dataset.test.names, dataset.notes, record_of(dataset).as_dict()))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", KNOWN, str(root)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.stderr) == (expected, "")
    assert dataset.class_names == (f"caf{E_ACUTE}", "tea")
    assert f"'t{E_ACUTE}'" in dataset.notes[0]


def test_every_class_has_images_on_either_side_if_it_has_two(tmp_path):
    for number in range(40):  # of two to four images: the hash alone would leave half of the classes on one side
        dataset = load_dataset(photos(tmp_path / str(number), range(2 + number % 3), "abcd"), seed=number)
        assert set(dataset.train.labels) == set(dataset.test.labels) == {0, 1, 2, 3}
    dataset = load_dataset(write(tmp_path / "single", ["a/0.png", *(f"b/{n}.png" for n in range(5))]))
    assert 0 in dataset.train.labels
    assert 0 not in dataset.test.labels


def test_arrays_are_known_by_their_pixels(tmp_path):
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (60, 2, 2, 3)).astype(np.uint8), np.arange(60) % 2
    expected = {image.tobytes() for image in images if hashed(image.tobytes()) < 0.2 * 2**64}

    def tested(images, labels):
        np.savez(tmp_path / "set.npz", x=images, y=labels)
        split = load_dataset(tmp_path / "set.npz").test
        return [split.read(index).tobytes() for index in range(len(split))]

    assert set(tested(images, labels)) == expected
    order = generator.permutation(60)
    assert set(tested(images[order], labels[order])) == expected
    assert set(tested(images[order] / np.float32(255), labels[order])) == expected
    doubled = tested(np.concatenate([images, images]), np.concatenate([labels, labels]))
    assert (set(doubled), len(doubled)) == (expected, 2 * len(expected))


def test_a_record_is_data_for_json(tmp_path):
    record = record_of(load_dataset(photos(tmp_path / "photos", range(20)), seed=5))
    text = json.dumps(record.as_dict())
    back = SplitRecord.of(json.loads(text), "split.json", "")
    assert back.rule == SplitRule(5, 0.2)
    for side in ("train", "test"):
        np.testing.assert_array_equal(back.images[side], record.images[side])
        assert json.loads(text)["counts"][side] == len(record.images[side])
    assert len(text) < 20 * 2 * 9 + 200
    damaged: list[Any] = [{}, [], {"rule": None, "images": {"train": "AAAA"}}, {"rule": None, "images": 1}]
    for damage in damaged:
        with pytest.raises(UserError, match=r"^split\.json: .* is damaged: remove it$"):
            SplitRecord.of(damage, "split.json", "remove it")


def test_data_that_changed_are_divided_as_before_and_it_is_said(tmp_path):
    root = photos(tmp_path / "photos", range(20))
    dataset = load_dataset(root, seed=3)
    record = record_of(dataset)
    assert changes_since(divided_as_before(load_dataset(root), record), record) == []
    moved = root.rename(tmp_path / "elsewhere")
    assert sides(divided_as_before(load_dataset(moved), record)) == sides(dataset)
    photos(moved, [500, 501])
    (moved / dataset.train.names[0]).unlink()
    changed = divided_as_before(load_dataset(moved), record)
    assert changes_since(changed, record) == [
        "elsewhere has changed since the model was trained: 4 images were added and 1 image was removed"
    ]
    assert not set(changed.test.names) & set(dataset.train.names)
    other_seed = load_dataset(moved, seed=4)
    count = len(set(other_seed.test.names) & set(dataset.train.names))
    assert count
    assert (
        f"{count} of the {len(other_seed.test)} images that are tested on were trained on"
        in changes_since(other_seed, record)[1]
    )


def test_other_images_of_the_same_names_are_not_taken_for_those_trained_on(tmp_path):
    record = record_of(load_dataset(photos(tmp_path / "photos", range(20))))
    others = write(tmp_path / "others", [f"{c}/{n:03}.png" for c in "ab" for n in range(20)], extra=b"other")
    new = ["others is new to the model: by their class, name and size, none of its images was trained on"]
    assert changes_since(load_dataset(others, test_fraction=1), record) == new
    everything = changes_since(load_dataset(tmp_path / "photos", test_fraction=1), record)
    assert "images that are tested on were trained on" in everything[0]


def test_no_image_that_was_trained_on_crosses_over_when_its_class_lost_its_test_images(tmp_path):
    root = photos(tmp_path / "photos", range(10))
    dataset = load_dataset(root)
    record = record_of(dataset)
    for name in dataset.test.names:
        if name.startswith("a"):
            (root / name).unlink()
    assert set(sides(load_dataset(root)).items()) - set(sides(dataset).items())  # the rule alone has to take one
    assert set(divided_as_before(load_dataset(root), record).test.names) <= set(dataset.test.names)
    for name in dataset.test.names:
        (root / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="all were trained on"):
        divided_as_before(load_dataset(root), record)


def test_an_image_that_moved_from_train_to_test_is_counted(tmp_path):
    names = [f"{role}/{c}/{n}.png" for role, count in (("train", 6), ("test", 3)) for c in "ab" for n in range(count)]
    root = write(tmp_path / "set", names)
    for path in (root / "train").rglob("*.png"):  # same names on both sides, and the same sizes
        path.write_bytes(b"x" * 10)
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"x" * 10)
    record = record_of(load_dataset(root))
    assert changes_since(load_dataset(root), record) == []
    (root / "train/a/5.png").rename(root / "test/a/5.png")
    assert changes_since(load_dataset(root), record)[-1].startswith("1 of the 7 images that are tested on were trained")


def test_images_that_were_copied_from_train_to_test_are_counted(tmp_path):
    root = tmp_path / "set"
    for role, base in (("train", 0), ("test", 100)):
        for number, name in enumerate(["a/0", "a/1", "a/2", "b/3", "b/4", "b/5"][: 6 if role == "train" else 4]):
            (root / role / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2), base + number).save(root / role / f"{name}.bmp")
    (root / "test/a/2.bmp").unlink()
    record = record_of(load_dataset(root))  # of pairs of the same names and sizes
    assert changes_since(load_dataset(root), record) == []
    for name in ("a/2", "b/4"):
        shutil.copy(root / f"train/{name}.bmp", root / f"test/{name}.bmp")
    Image.new("L", (2, 2), 200).save(root / "test/b/5.bmp")  # another image of the name and size of one to train on
    added, seen = changes_since(load_dataset(root), record)
    assert added == "set has changed since the model was trained: 3 images were added"
    assert seen.startswith("2 of the 6 images that are tested on were trained on")


def test_images_that_lie_on_both_sides_are_counted(tmp_path):
    root = tmp_path / "set"
    for name, value in (("train/a/0", 0), ("train/a/1", 1), ("train/b/0", 2), ("test/a/0", 0), ("test/a/1", 9)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), value).save(root / f"{name}.bmp")
    write(root, ["test/b/0.bmp"])
    said = ["1 of the 3 images to test on are also among those to train on"]
    assert copies_in(load_dataset(root)) == said  # of the same name and size, of which one is another image
    images = np.arange(5, dtype=np.uint8)[:, None, None] * np.ones((5, 2, 2), np.uint8)
    np.savez(tmp_path / "s.npz", x_train=images, y_train=[0, 1, 0, 1, 0], x_test=images[2:] + 2, y_test=[0, 1, 0])
    assert copies_in(load_dataset(tmp_path / "s.npz")) == said
    assert copies_in(load_dataset(photos(tmp_path / "photos", range(9)))) == []


def test_a_run_goes_on_with_the_images_it_began_with(tmp_path):
    root = photos(tmp_path / "photos", range(20))
    dataset = load_dataset(root, seed=3)
    record = record_of(dataset)
    photos(root, [500, 501])
    held, said = held_to(load_dataset(root), record)
    assert sides(held) == sides(dataset)
    assert said[0].startswith("4 images were added to photos since: left out")
    (root / dataset.test.names[0]).unlink()
    held, said = held_to(load_dataset(root), record)
    assert held.test.names == dataset.test.names[1:]
    assert said[1] == "1 image was removed from photos since, which were tested on"
    (root / dataset.train.names[0]).unlink()
    with pytest.raises(UserError, match="photos lacks 1 of the run's images to train on: put them back, or begin"):
        held_to(load_dataset(root), record)


def test_what_could_not_be_read_may_be_repaired_or_removed(tmp_path):
    root = photos(tmp_path / "photos", range(20))
    dataset = load_dataset(root)
    broken = [3, 8, 11]
    whole = record_of(dataset)
    record = SplitRecord.of(
        json.loads(json.dumps(whole.as_read(dataset.train, broken, is_first=True).as_dict())), "", ""
    )
    identities = dataset.train.identities()
    assert set(record.unread) == set(identities[broken])
    assert set(record.trained) == set(identities) - set(identities[broken])
    assert changes_since(load_dataset(root), record) == held_to(load_dataset(root), record)[1] == []
    removed, repaired, unchanged = (dataset.train.names[place] for place in broken)
    (root / removed).unlink()
    (root / repaired).write_bytes(b"whole again")
    held, said = held_to(load_dataset(root), record)
    assert [text.split(":")[0] for text in said] == ["1 image was added to photos since"]
    assert set(held.train.names) == set(dataset.train.names) - {removed, repaired}
    assert len(held.train) == len(dataset.train)  # an epoch has as many steps as before
    # The one that is still there may be readable now; what was read before stays recorded as trained on.
    again = record.as_read(held.train, [0, held.train.names.index(unchanged)], is_first=False)
    assert (set(again.trained), set(again.unread)) == (set(record.trained), set(record.unread))
    again = record.as_read(held.train, [], is_first=False)
    assert set(again.trained) == {*record.trained, identities[broken[2]]}
    assert len(held_to(load_dataset(root), again)[0].train) == len(dataset.train)


def test_a_run_keeps_to_its_own_splits(tmp_path):
    own = write(tmp_path / "own", [f"{role}/{c}/0.png" for role in ("train", "val", "test") for c in "ab"])
    record = record_of(load_dataset(photos(tmp_path / "photos", range(20))))
    with pytest.raises(UserError, match="other splits of its own"):
        held_to(load_dataset(own), record)
    kept, said = held_to(load_dataset(own), record_of(load_dataset(own)))
    assert (len(kept.train), len(kept.validation), len(kept.test), said) == (2, 2, 2, [])
