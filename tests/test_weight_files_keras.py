"""Keras's HDF5 files and tensorpack's npz files: names, links to other files, and sizes that lie."""

import gc
import io
import struct
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
from numpy.lib import format as npy

from groupwise.errors import UserError
from groupwise.weights.reading import open_weights
from tests.weight_files import Evil, flip, read_all, refusal

pytestmark = pytest.mark.once


@pytest.mark.parametrize("top", ["", "model_weights/", "model_weights/inner_model/"])
@pytest.mark.parametrize("ending", ["", ":0"])
def test_names_in_keras_files(tmp_path, top, ending):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[f"{top}conv1/conv1/kernel{ending}"] = np.ones((3, 3, 4, 8))
        file[f"{top}conv1/conv1/bias{ending}"] = np.zeros(8)
        file.create_group(f"{top}relu1")
        file["optimizer_weights/adam/conv1/kernel:0"] = np.zeros(2)
        file.attrs["layer_names"] = ["conv1", "relu1"]
    with open_weights(tmp_path / "a.h5") as opened:
        assert opened.shapes == {"conv1.bias": (8,), "conv1.kernel": (3, 3, 4, 8)}


def test_two_datasets_of_one_name(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["inner1/conv1/kernel:0"] = file["inner2/conv1/kernel:0"] = np.ones(2)
    says = "its datasets 'inner1/conv1/kernel:0' and 'inner2/conv1/kernel:0' are both called 'conv1.kernel'"
    assert says in refusal(tmp_path / "a.h5")


@pytest.mark.parametrize("place", ["", "conv1/", "optimizer_weights/"])
@pytest.mark.parametrize("kind", ["external", "soft"])
def test_links_are_refused(tmp_path, place, kind):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["conv2/kernel:0"] = np.full(2, 42.0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["conv1/kernel:0"] = np.ones(2)
        link = h5py.ExternalLink("secret.h5", "/conv2") if kind == "external" else h5py.SoftLink("/conv1")
        file[f"{place}conv2"] = link
    assert "refused, since its 'conv2' is a link" in refusal(tmp_path / "a.h5")


def test_a_group_that_holds_itself(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["conv1/kernel:0"] = np.ones(2)
        file["conv1/again"] = file["conv1"]
        file["conv1/top"] = file
    with open_weights(tmp_path / "a.h5") as opened:
        assert opened.shapes == {"conv1.kernel": (2,)}


def write_virtual(file):
    layout = h5py.VirtualLayout((2,), np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "kernel", (2,), np.float32)
    file.create_virtual_dataset("conv1/kernel:0", layout)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_virtual, "lie in other files"),
        (lambda file: file.create_dataset("w", (2,), "f4", external=[("secret.raw", 0, 8)]), "lie in other files"),
        (lambda file: file.create_dataset("w", data=["text"]), "'w' is no array of numbers"),
        (lambda file: file.create_dataset("w", data=h5py.Empty("f4")), "'w' is no array of numbers"),
        (lambda file: file.create_dataset("w", (2,), h5py.ref_dtype), "'w' is no array of numbers"),
        (lambda file: file.create_dataset("w", (2,), np.complex64), "'w' is no array of numbers"),
        (lambda file: file.__setitem__("w", np.dtype("f4")), "'w' is no array of numbers"),
    ],
)
def test_datasets_that_are_no_arrays_of_numbers_in_the_file(tmp_path, monkeypatch, write, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.raw").write_bytes(np.full(2, 42, np.float32).tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.full(2, 42, np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file)
    assert says in refusal(tmp_path / "a.h5")


def test_a_damaged_dataset(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("conv1/kernel:0", data=np.full(1000, 42, np.float32), chunks=(1000,), fletcher32=True)
        file["conv1/bias:0"] = np.ones(2)
    flip(tmp_path / "a.h5", np.full(10, 42, np.float32).tobytes())
    with open_weights(tmp_path / "a.h5") as opened:
        with pytest.raises(UserError, match=r"a\.h5: its tensor 'conv1\.kernel' cannot be read"):
            opened.read("conv1.kernel")
        assert opened.read("conv1.bias").tolist() == [1, 1]


# npz


def test_names_in_tensorpacks_files(tmp_path):
    values = {"stage2/block0/conv1/W:0": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "linear/b": np.ones(3)}
    np.savez(tmp_path / "a.npz", **values)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README", "no array")
    with open_weights(tmp_path / "a.npz") as file:
        assert file.shapes == {"stage2/block0/conv1/W": (2, 3), "linear/b": (3,)}
        assert file.read("stage2/block0/conv1/W").tolist() == [[0, 1, 2], [3, 4, 5]]


class Garbage:
    """What the garbage collector alone can free, and takes long over."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        for _ in range(200):
            pass


def test_arrays_in_npz_are_read_in_threads(tmp_path):
    """CPython 3.11 fails to parse, as NumPy's reader does, where another thread parses while garbage is collected."""
    values = {str(number): np.full((3, 3), number, np.float32) for number in range(1000)}
    np.savez(tmp_path / "a.npz", **values)
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()

    def read(key):
        Garbage()
        return file.read(key)

    try:
        gc.set_threshold(20)
        sys.setswitchinterval(1e-6)
        with open_weights(tmp_path / "a.npz") as file, ThreadPoolExecutor(4) as pool:
            arrays = list(pool.map(read, values))
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
    np.testing.assert_array_equal(arrays, list(values.values()))


def test_object_arrays_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.array([Evil(tmp_path / "marker")], object))
    assert "refused, since its 'w.npy' holds objects of type object, not numbers" in refusal(tmp_path / "a.npz")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("value", [np.array(["text"]), np.ones(2, np.complex64), np.zeros(2, [("a", "f4")])])
def test_other_arrays_in_npz_are_refused(tmp_path, value):
    np.savez(tmp_path / "a.npz", w=value)
    assert "not numbers" in refusal(tmp_path / "a.npz")


def npy_bytes(shape, data, version=(1, 0)):
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    (npy.write_array_header_1_0 if version == (1, 0) else npy.write_array_header_2_0)(stream, header)
    return stream.getvalue() + data


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npy_bytes((1000, 1000, 1000), bytes(8)), "has not the size that its header declares"),
        (npy_bytes((2,), bytes(1 << 20)), "has not the size that its header declares"),
        (npy_bytes((-2, -1), bytes(8)), "has not the size that its header declares"),
        (npy_bytes((2,), bytes(8), (2, 0)), "is no plain array"),
        (npy_bytes((2.5,), bytes(8)), "is no npz file, or a damaged one: shape is not valid"),
        (b"\x93NUMPY\x01\x00\x10\x00{", "is no npz file, or a damaged one"),
        (b"no array", "is no npz file, or a damaged one"),
        (b"", "is no npz file, or a damaged one"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_lying_npy_header(tmp_path, content, says, compression):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("w.npy", content)
    assert says in refusal(tmp_path / "a.npz")


def test_two_arrays_of_one_name(tmp_path):
    np.savez(tmp_path / "a.npz", **{"w": np.ones(2), "w:0": np.ones(2)})
    assert "has two arrays called 'w'" in refusal(tmp_path / "a.npz")


@pytest.mark.parametrize("claimed", [2, 400, 40_000_000])
def test_a_zip_that_lies_about_a_members_size(tmp_path, claimed):
    """The member holds 100 numbers; its header and the zip's directory agree on another count."""
    content = npy_bytes((claimed,), bytes(400))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", content)
    raw = (tmp_path / "a.npz").read_bytes()
    true, lie = (struct.pack("<I", len(content) - 400 + size) for size in (400, 4 * claimed))
    assert raw.count(true) == 2
    (tmp_path / "a.npz").write_bytes(raw.replace(true, lie))
    # Where a small array is read with its header, its checksum is wrong already when the file is opened.
    with pytest.raises(UserError, match=r"its tensor 'w' cannot be read|or a damaged one: Bad CRC"):
        read_all(tmp_path / "a.npz")


def test_a_damaged_array_in_npz(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.full(1000, 42, np.float32))
    flip(tmp_path / "a.npz", np.full(100, 42, np.float32).tobytes())
    with pytest.raises(UserError, match="its tensor 'w' cannot be read"):
        read_all(tmp_path / "a.npz")
