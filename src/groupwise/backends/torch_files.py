"""PyTorch's files of tensors, read without running anything that they hold."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from groupwise.errors import UserError

# What checkpoints call the weights among other things; averaged ones first, as timm chooses.
NESTS = ("state_dict_ema", "model_ema", "state_dict", "model")
DEEPEST = 3  # nests within nests; a mapping may hold itself


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads the tensors of a file of `torch.save`: a mapping of tensors, or one nested in a checkpoint.

    What lies beside them is ignored. Newer files are mapped into memory, older ones are read whole.

    Returns:
        Dense tensors of real numbers on the CPU by name, in the file's order.

    Raises:
        UserError: the file holds more than tensors, such as a program, or no mapping of tensors.
        Exception: it is damaged; PyTorch raises nearly anything.
    """
    content = _load(path)
    for _ in range(DEEPEST):
        if isinstance(content, Mapping):
            content = next((content[name] for name in NESTS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no tensors by name, but one {type(content).__name__}")
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor) and isinstance(key, str)}
    for key, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or tensor.is_complex():
            raise UserError(f"{path}: its tensor {key!r} is no dense array of real numbers")
    return tensors


def to_array(tensor: Any) -> NDArray[np.float32]:
    """Returns a tensor's numbers as an array of its own."""
    array: NDArray[np.float32] = tensor.detach().to(torch.float32, copy=True).numpy()
    return array


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UserError(
                    f"{path}: refused, since its parts are compressed, as a program's are and tensors are not"
                )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        # Not only pickles are refused, but old tar files and compiled programs, and those with other errors.
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ", or is damaged"
        raise UserError(
            f"{path}: refused, since it holds a program or objects other than tensors{what}; take a .safetensors file"
        ) from error
