"""Reading a weight file as data, never as a program: safetensors, PyTorch's files, Keras's HDF5 and npz."""

import json
import math
import struct
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import h5py
import ml_dtypes
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from safetensors import safe_open

from groupwise.errors import UserError
from groupwise.weights.hdf5 import refuse_elsewhere, refuse_links

Layout: TypeAlias = Literal["OIHW", "HWIO"]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
Read: TypeAlias = Callable[[str], Any]


class Contents(NamedTuple):
    """What a file holds: the shapes, how a tensor is read, and a sentence where it holds other weights besides."""

    shapes: Shapes
    read: Read
    note: str | None = None


SAFETENSORS_TYPES: dict[str, Any] = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BF16": ml_dtypes.bfloat16,
    "BOOL": "?",
}
NUMBERS = "fiub"  # NumPy's kinds: floats, integers with and without a sign, truth values


class WeightFile:
    """An open weight file: the shapes are known at once, the arrays are read one at a time.

    A context manager; `open_weights` makes one.

    Attributes:
        path: the file.
        layout: the axes of its convolution kernels, "OIHW" (PyTorch's) or "HWIO" (Keras's and tensorpack's).
        shapes: every tensor's name and shape, in the file's order; HDF5 itself sorts by name.
        note: a sentence where the file holds other weights beside these, else None.
    """

    def __init__(self, path: Path, layout: Layout, contents: Contents, resources: ExitStack) -> None:
        self.path = path
        self.layout = layout
        self.shapes, self._read, self.note = contents
        self._resources = resources

    def read(self, key: str) -> NDArray[np.float32]:
        """Read one tensor, whatever its type, as float32.

        Args:
            key: one of `shapes`.

        Returns:
            A float32 array of the shape `shapes[key]`, in C order.

        Raises:
            UserError: the tensor is damaged.
        """
        if key not in self.shapes:
            raise ValueError(f"key={key!r}: {self.path} has no tensor of this name")
        try:
            return np.asarray(self._read(key), np.float32, order="C")
        except Exception as error:  # the libraries raise nearly anything on damaged files
            raise UserError(f"{self.path}: its tensor {key!r} cannot be read ({_reason(error)})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()


class _Kind(NamedTuple):
    """A kind of file: what messages call it, its kernels' axes, and how it is opened."""

    name: str
    layout: Layout
    open: Callable[[Path, ExitStack], Contents]


def open_weights(path: Path) -> WeightFile:
    """Open a weight file, of the kind that its ending tells, without reading anything large.

    Nothing that the file holds is run: objects beside a pickle's tensors are passed over, and a pickle of a program is
    refused, as is HDF5 that refers to other files.

    Args:
        path: a .safetensors file, PyTorch's .pth, .pt, .bin, .ckpt or .tar, Keras's .h5 or .hdf5, or an .npz.

    Returns:
        The open file, to be used in a `with` statement.

    Raises:
        UserError: the file is missing, of another kind, damaged, or refused.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "weights.npz"
        >>> np.savez(path, **{"conv1/W": np.ones((3, 3, 4, 8), np.float16)})
        >>> with open_weights(path) as file:
        ...     print(file.layout, file.shapes, file.read("conv1/W").dtype)
        HWIO {'conv1/W': (3, 3, 4, 8)} float32
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        raise UserError(f"{path} is a folder; {_in_folder(path)}")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path} is of no kind that can be read; {_other_kind(path)}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: copy or download it again")
    with ExitStack() as opened:
        try:
            contents = kind.open(path, opened)
        except UserError:
            raise
        except Exception as error:  # the libraries raise nearly anything on damaged files
            raise UserError(f"{path}: is no {kind.name}, or a damaged one: {_cause(error)}") from error
        if not contents.shapes:
            raise UserError(f"{path} holds no tensors")
        resources = opened.pop_all()
    return WeightFile(path, kind.layout, contents, resources)


def _in_folder(path: Path) -> str:
    """Return what to do with a folder."""
    if (path / "zero_to_fp32.py").exists():
        return "DeepSpeed wrote it: its zero_to_fp32.py makes one file of weights of it, which can be read"
    return "name the weight file in it"


def _other_kind(path: Path) -> str:
    """Return what to do with a file of no kind that is read."""
    if path.name.endswith(".index.json"):
        return "it lists the parts of weights in several files: load them all, and save one file of the whole"
    return f"the endings of those are {', '.join(KINDS)}"


def _cause(error: Exception) -> str:
    """Return what is wrong with a file: a library's own words, but not what Python says where it ran off the rails."""
    stumbled = isinstance(error, EOFError | LookupError | TypeError | AttributeError | AssertionError | struct.error)
    return "what it holds makes no sense" if stumbled else _reason(error)


def _reason(error: Exception) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _open_safetensors(path: Path, resources: ExitStack) -> Contents:
    """Let the library check that the header and the file's length agree, and read tensor by tensor.

    The library would map the file into memory, which then counts as the process's: as much again as the tensors.
    """
    with safe_open(path, framework="numpy") as file:
        keys = file.offset_keys()
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    shapes = {key: tuple(header[key]["shape"]) for key in keys}
    for key in keys:
        if header[key]["dtype"] not in SAFETENSORS_TYPES:
            raise UserError(f"{path}: its tensor {key!r} is of type {header[key]['dtype']}, which cannot be read")

    def read(key: str) -> Any:
        dtype = np.dtype(SAFETENSORS_TYPES[header[key]["dtype"]])
        begin = 8 + length + header[key]["data_offsets"][0]
        return np.fromfile(path, dtype, math.prod(shapes[key]), offset=begin).reshape(shapes[key])

    return Contents(shapes, read)


def _open_torch(path: Path, resources: ExitStack) -> Contents:
    try:
        from groupwise.backends.torch import weight_files
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError(
            f'{path}: needs PyTorch to be read; pip install "groupwise[torch]", or take a .safetensors file'
        ) from error
    tensors, note = weight_files.read_tensors(path)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Contents(shapes, lambda key: weight_files.to_array(tensors[key]), note)


def _open_hdf5(path: Path, resources: ExitStack) -> Contents:
    """Find the datasets; `visititems` itself follows hard links only, and each of them once."""
    file = resources.enter_context(h5py.File(path, "r"))
    datasets: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            refuse_links(path, item)
        elif name.split("/")[0] != "optimizer_weights":
            _refuse_unusual(path, name, item)
            key = ".".join(name.removesuffix(":0").split("/")[-2:])
            if key in datasets:
                other = datasets[key].name.removeprefix("/")
                raise UserError(f"{path}: its datasets {other!r} and {name!r} are both called {key!r}")
            datasets[key] = item

    refuse_links(path, file)
    file.visititems(visit)
    return Contents({key: dataset.shape for key, dataset in datasets.items()}, lambda key: datasets[key][()])


def _refuse_unusual(path: Path, name: str, item: Any) -> None:
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.dtype.kind not in NUMBERS:
        raise UserError(f"{path}: refused, since its {name!r} is no array of numbers")
    refuse_elsewhere(path, name, item)


def _open_npz(path: Path, resources: ExitStack) -> Contents:
    archive = resources.enter_context(zipfile.ZipFile(path))
    members = {}
    headers: dict[str, _NpyHeader] = {}
    for member in archive.infolist():
        if not member.filename.endswith(".npy"):
            continue
        key = member.filename.removesuffix(".npy").removesuffix(":0")
        if key in members:
            raise UserError(f"{path}: has two arrays called {key!r}")
        members[key] = member
        headers[key] = _npy_header(path, archive, member)

    def read(key: str) -> Any:
        # Not NumPy's reader: it parses the header as Python, which now and then fails in two threads of CPython 3.11.
        header = headers[key]
        numbers = np.frombuffer(archive.read(members[key]), header.dtype, offset=header.length)
        return numbers.reshape(header.shape, order="F" if header.is_fortran else "C").copy(order="C")

    return Contents({key: header.shape for key, header in headers.items()}, read)


class _NpyHeader(NamedTuple):
    """What the header of an array in an .npz declares, and its length in bytes."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype
    length: int


def _npy_header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _NpyHeader:
    """Return an array's header, once the shape in it agrees with the size of the whole."""
    with archive.open(member) as stream:
        if npy.read_magic(stream) != (1, 0):  # others are for names of fields, and their headers have no bound
            raise UserError(f"{path}: refused, since its {member.filename!r} is no plain array")
        header = _NpyHeader(*npy.read_array_header_1_0(stream), stream.tell())
    if header.dtype.kind not in NUMBERS:
        raise UserError(
            f"{path}: refused, since its {member.filename!r} holds objects of type {header.dtype}, not numbers"
        )
    size = header.length + math.prod(header.shape) * header.dtype.itemsize
    if min(header.shape, default=0) < 0 or size != member.file_size:
        raise UserError(f"{path}: refused, since its {member.filename!r} has not the size that its header declares")
    return header


_TORCH = _Kind("PyTorch file", "OIHW", _open_torch)
_HDF5 = _Kind("HDF5 file", "HWIO", _open_hdf5)
KINDS = {
    ".safetensors": _Kind("safetensors file", "OIHW", _open_safetensors),
    **dict.fromkeys((".pth", ".pt", ".bin", ".tar", ".ckpt"), _TORCH),
    **dict.fromkeys((".h5", ".hdf5"), _HDF5),
    ".npz": _Kind("npz file", "HWIO", _open_npz),
}
