"""Writers of weight files in every format that is read, and the sentence with which a file is refused."""

from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from groupwise.errors import UserError
from groupwise.weights.reading import open_weights


def write_safetensors(path, values):
    save_file(values, path)


def write_torch(path, values):
    torch.save({name: to_tensor(value) for name, value in values.items()}, path)


def write_old_torch(path, values):
    tensors = {name: to_tensor(value) for name, value in values.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def write_hdf5(path, values):
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            layer, variable = name.split(".")
            file[f"{layer}/{layer}/{variable}:0"] = value


def write_npz(path, values):
    np.savez(path, **values)


def to_tensor(value):
    if value.dtype == np.dtype(ml_dtypes.bfloat16):
        return torch.from_numpy(value.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(value)


FORMATS = [
    ("a.safetensors", write_safetensors),
    ("a.pth", write_torch),
    ("a.pt", write_torch),
    ("a.bin", write_torch),
    ("a.pth.tar", write_torch),
    ("a.ckpt", write_torch),
    ("a.PTH", write_old_torch),
    ("a.h5", write_hdf5),
    ("a.hdf5", write_hdf5),
    ("a.npz", write_npz),
]


def read_all(path):
    with open_weights(path) as file:
        return {key: file.read(key) for key in file.shapes}


def refusal(path):
    """Return the sentence with which a file is refused when it is opened; it names the file, on one line."""
    with pytest.raises(UserError) as refused:
        open_weights(path)
    sentence = str(refused.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert "weights_only" not in sentence
    return sentence


class Evil:
    """A pickle of it creates the file `marker` when it is loaded."""

    def __init__(self, marker, function=open):
        self.marker, self.function = marker, function

    def __reduce__(self):
        return self.function, (str(self.marker), "w")


def touch(name, mode):
    """Create a file, as `open` does, in a module that is not known to act on the machine."""
    Path(name).open(mode).close()


def flip(path, found):
    """Change a byte where `found` stands in a file."""
    content = bytearray(path.read_bytes())
    content[content.index(found) + len(found) // 2] ^= 1
    path.write_bytes(content)
