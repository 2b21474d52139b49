"""Weight files of every format are read as data: the right numbers, one tensor at a time; broken ones are refused."""

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from groupwise.weights.reading import open_weights
from tests.weight_files import FORMATS, read_all, refusal, write_hdf5, write_npz, write_safetensors

pytestmark = pytest.mark.once
VALUES = {
    "conv1.kernel": np.linspace(-2, 2, 3 * 3 * 4 * 8, dtype=np.float32).reshape(3, 3, 4, 8),
    "conv1.bias": np.arange(8, dtype=np.float32) / 4,
    "bn1.count": np.array(7, np.float32),
    "bn1.empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize(("name", "write"), FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool"])
def test_every_format_and_type_becomes_float32(tmp_path, name, write, dtype):
    if dtype == "bfloat16" and write in (write_hdf5, write_npz):
        pytest.skip("the format has no bfloat16")
    values: dict[str, NDArray[Any]] = {key: np.array(abs(value), np.dtype(dtype)) for key, value in VALUES.items()}
    write(tmp_path / name, values)
    with open_weights(tmp_path / name) as file:
        assert file.path == tmp_path / name
        assert file.layout == ("HWIO" if write in (write_hdf5, write_npz) else "OIHW")
        assert file.shapes == {key: value.shape for key, value in values.items()}
        for key, value in values.items():
            array = file.read(key)
            assert array.dtype == np.float32
            assert array.flags.c_contiguous
            assert array.shape == value.shape
            np.testing.assert_array_equal(array, value.astype(np.float32))
        with pytest.raises(ValueError, match="key='conv2'"):
            file.read("conv2")


@pytest.mark.parametrize(("name", "write"), [row for row in FORMATS if row[1] is not write_hdf5])
def test_shapes_are_in_the_files_order(tmp_path, name, write):
    names = ["z", "a", "m", "b"]
    write(tmp_path / name, {key: np.zeros(3, np.float32) for key in names})
    expected = sorted(names) if write is write_safetensors else names  # the library sorts when it writes
    with open_weights(tmp_path / name) as file:
        assert list(file.shapes) == expected


def test_safetensors_are_in_the_order_of_their_bytes(tmp_path):
    header = {name: entry([4 * place, 4 * place + 4]) for place, name in enumerate("zam")}
    with open_weights(write_header(tmp_path, dict(sorted(header.items())), bytes(12))) as file:
        assert list(file.shapes) == ["z", "a", "m"]


@pytest.mark.parametrize(
    ("name", "write"), [("a.safetensors", write_safetensors), ("a.h5", write_hdf5), ("a.npz", write_npz)]
)
def test_arrays_are_read_one_at_a_time(tmp_path, name, write):
    values = {f"conv{n}.kernel": np.full((256, 1024), n, np.float32) for n in range(16)}
    size = values["conv0.kernel"].nbytes
    write(tmp_path / name, values)
    tracemalloc.start()
    try:
        with open_weights(tmp_path / name) as file:
            assert len(file.shapes) == 16
            assert tracemalloc.get_traced_memory()[1] < size
            for n in range(16):
                assert file.read(f"conv{n}.kernel").mean() == n
            assert tracemalloc.get_traced_memory()[1] < 2.5 * size
    finally:
        tracemalloc.stop()


def test_a_read_array_outlives_the_file_and_is_its_readers_own(tmp_path):
    for name, write in FORMATS:
        write(tmp_path / name, VALUES)
        kernel = read_all(tmp_path / name)["conv1.kernel"]
        kernel += 1
        np.testing.assert_array_equal(read_all(tmp_path / name)["conv1.kernel"], VALUES["conv1.kernel"])


def test_what_cannot_be_a_weight_file(tmp_path):
    assert "does not exist" in refusal(tmp_path / "a.pth")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "a.tflite").write_bytes(b"")
    assert ".safetensors, .pth, .pt, .bin, .tar, .ckpt, .h5, .hdf5, .npz" in refusal(tmp_path / "a.tflite")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "lists the parts of weights in several files" in refusal(tmp_path / "model.safetensors.index.json")
    (tmp_path / "zero_to_fp32.py").write_text("")
    assert "DeepSpeed wrote it: its zero_to_fp32.py makes one file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.pth.tar", "a.h5", "a.npz"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04" + bytes(100), bytes(1000)])
def test_a_file_of_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    says = refusal(tmp_path / name)
    assert (
        ("or a damaged one" in says or "or is damaged" in says)
        if content
        else says.endswith("copy or download it again")
    )


@pytest.mark.parametrize("content", [b"ujunkjunkjunk", b"hello there, world", b"\x80\x02"])
def test_what_python_stumbles_over_is_no_reason(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    says = refusal(tmp_path / "a.pth")
    assert "is no PyTorch file, or a damaged one: what it holds makes no sense" in says or "or is damaged" in says


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_half_a_file(tmp_path, name, write):
    write(tmp_path / name, VALUES)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    assert "damaged" in refusal(tmp_path / name)


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_a_file_without_tensors(tmp_path, name, write):
    write(tmp_path / name, {})
    assert "holds no tensors" in refusal(tmp_path / name)


# safetensors


def write_header(folder, header, data=b""):
    path = folder / "a.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(offsets, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"abcd", b""),
        (b"\xff\xfe\xfd\xfc", b""),
        ([1], b""),
        ({"a": 1}, b""),
        ({"a": entry([0, 8], [2])}, bytes(4)),
        ({"a": entry([0, 4])}, bytes(8)),
        ({"a": entry([0, 4]), "b": entry([2, 6])}, bytes(6)),
        ({"a": entry([0, 4]), "b": entry([0, 4])}, bytes(4)),
        ({"a": entry([0, 4]), "b": entry([8, 12])}, bytes(12)),
        ({"a": entry([4, 0])}, bytes(4)),
        ({"a": entry([0, 4], [3])}, bytes(4)),
        ({"a": entry([0, 4], [-1])}, bytes(4)),
        ({"a": entry([0, 4], [2**62, 2**62])}, bytes(4)),
        ({"a": entry([0, 4], dtype="F99")}, bytes(4)),
    ],
)
def test_a_lying_safetensors_header(tmp_path, header, data):
    assert "is no safetensors file, or a damaged one: " in refusal(write_header(tmp_path, header, data))


@pytest.mark.parametrize("length", [3, 1000, 2**40, 2**64 - 1])
def test_a_safetensors_header_longer_than_the_file(tmp_path, length):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert "is no safetensors file, or a damaged one: " in refusal(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_safetensors_of_other_types(tmp_path, dtype):
    path = write_header(tmp_path, {"a": entry([0, 4], [4], dtype)}, bytes(4))
    assert refusal(path).endswith(f"its tensor 'a' is of type {dtype}, which cannot be read")
