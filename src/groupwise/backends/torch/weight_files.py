"""PyTorch's files of tensors, read without running anything that they hold."""

import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from groupwise.errors import UserError

AVERAGED = (
    *("state_dict_ema", "model_ema", "model_ema_state_dict", "model_state_dict_ema", "ema_state_dict"),
    *("ema_model_state_dict", "ema_model", "params_ema", "ema"),
)
CURRENT = (
    *("state_dict", "model_state_dict", "model_state", "model", "net_state_dict", "net", "network_state_dict"),
    *("network", "weights", "params", "module", "state"),
)
"""What checkpoints call the weights among other things; averaged ones come first, as timm chooses."""
DEEPEST = 3  # nests within nests; a mapping may hold itself

ACTING = {
    *("asyncio", "code", "commands", "ctypes", "ftplib", "http", "importlib", "io", "_io", "multiprocessing", "nt"),
    *("os", "pickle", "_pickle", "posix", "pty", "runpy", "shutil", "smtplib", "socket", "subprocess", "sys"),
    *("tempfile", "urllib", "webbrowser"),
}
ACTING_BUILTINS = {"eval", "exec", "compile", "open", "input", "breakpoint", "__import__", "print"}
"""Modules and functions that act on the machine: no checkpoint needs one, and a file that names one is not trusted."""
MOST_CLASSES = 300  # that are unknown here, in one file

SAVE_ANEW = "load it where it was written, and save torch.save(model.state_dict(), PATH)"
BY_RUNNING = f"which is rebuilt only by running its program; {SAVE_ANEW}"
TENSORS = (".weight", ".bias", ".running_mean", ".running_var")


class _Inert:
    """What stands in for an instance of a class that is not needed: it is made of anything, and does nothing."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_tensors(path: Path) -> tuple[dict[str, Any], str | None]:
    """Read the tensors of a file of `torch.save`: a mapping of tensors, or one nested in a checkpoint.

    What lies beside them is ignored: objects of other classes are never made. Newer files are mapped into memory, older
    ones are read whole.

    Returns:
        Dense tensors of real numbers on the CPU by name, in the file's order; and a sentence where there were others to
        choose from, else None.

    Raises:
        UserError: the file holds a program, tensors of somebody's own class, or no mapping of tensors.
        Exception: it is damaged; PyTorch raises nearly anything.
    """
    content = _load(path)
    place, found = _weights_in(content, DEEPEST)
    if found is None:
        _refuse(path, content)
    tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor) and isinstance(key, str)}
    _refuse_objects(path, found)
    for key, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or tensor.is_complex():
            quantized = "; it is quantized: save the network before that" if tensor.is_quantized else ""
            raise UserError(f"{path}: its tensor {key!r} is no dense array of real numbers{quantized}")
    return tensors, _note(content, place)


def to_array(tensor: Any) -> NDArray[np.float32]:
    """Return a tensor's numbers as an array of its own."""
    array: NDArray[np.float32] = tensor.detach().to(torch.float32, copy=True).numpy()
    return array


def _weights_in(content: Any, depth: int) -> tuple[tuple[str, ...], Mapping[Any, Any] | None]:
    """Return where the mapping of tensors is in a checkpoint, by the names of the nests, and the mapping."""
    if not isinstance(content, Mapping):
        return (), None
    for name in (*AVERAGED, *CURRENT) if depth else ():
        place, found = _weights_in(content.get(name), depth - 1)
        if found is not None:
            return (name, *place), found
    has_weights = any(isinstance(value, torch.Tensor) and value.ndim for value in content.values())
    return (), content if has_weights else None


def _note(content: Any, place: tuple[str, ...]) -> str | None:
    """Say so where averaged weights were taken and others lie beside them."""
    for name in place:
        others = [other for other in CURRENT if _weights_in(content.get(other), DEEPEST)[1] is not None]
        if name in AVERAGED and others:
            return f"the averaged weights ({name}) are taken, not those beside them ({others[0]})"
        content = content[name]
    return None


def _refuse(path: Path, content: Any) -> NoReturn:
    """Say why a file has no tensors by name."""
    if isinstance(content, _Inert):
        raise UserError(f"{path}: refused, since it holds a whole {content.name}, {BY_RUNNING}")
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no tensors by name, but one {type(content).__name__}")
    for name in (*AVERAGED, *CURRENT):
        if isinstance(content.get(name), _Inert):
            raise UserError(f"{path}: refused, since {name!r} in it is a whole {content[name].name}, {BY_RUNNING}")
    _refuse_objects(path, content)
    names = ", ".join(str(name) for name in list(content)[:8])
    raise UserError(f"{path} holds no tensors by name" + (f"; what it holds is called {names}" if names else ""))


def _refuse_objects(path: Path, weights: Mapping[Any, Any]) -> None:
    """Refuse weights that are objects of other classes than tensors."""
    for key, value in weights.items():
        if isinstance(value, _Inert) and str(key).endswith(TENSORS):
            raise UserError(f"{path}: refused, since its {key!r} is no plain tensor but a {value.name}; {SAVE_ANEW}")


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        begins = file.read(4)
    zipped = begins == b"PK\x03\x04"
    if zipped:
        _check_archive(path)
    elif any(begins) and tarfile.is_tarfile(path):  # zeros alone would be an empty one
        raise UserError(
            f"{path}: refused, since it is a tar archive: unpack it and name the file of weights in it; or, where "
            f"PyTorch before 0.2 wrote it, {SAVE_ANEW}"
        )
    inert: dict[str, type] = {}
    while True:
        try:
            with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in inert.items()]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except Exception as error:
            if not _learn(inert, str(error)):
                _refuse_program(path, inert, error)


def _check_archive(path: Path) -> None:
    """Refuse archives of something else than tensors."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    names = ["/" + member.filename for member in members]
    if any("/code/" in name or name.endswith(("/constants.pkl", "/archive_format")) for name in names):
        raise UserError(
            f"{path}: refused, since it is a compiled program (TorchScript or torch.export); "
            "save torch.save(torch.jit.load(PATH).state_dict(), PATH) of it, or the network's own state_dict"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UserError(f"{path}: refused, since its parts are compressed, as a program's are and tensors are not")


def _learn(inert: dict[str, type], message: str) -> bool:
    """Add what a file lacked to what stands in for its classes, and return whether that was anything new.

    PyTorch's error names one unknown class at a time, and then those that are filled like a dictionary or a list.
    """
    unknown = re.search(r"GLOBAL (\S+) was not an allowed global", message)
    if unknown:
        name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
        if name in inert or len(inert) == MOST_CLASSES or _acts(name):
            return False
        inert[name] = _stand_in(name)
        return True
    filled = re.search(r"Can only (SETITEM|append|extend).* but got <class 'inert\.(\S+)'>", message)
    if filled:
        inert[filled[2]] = _stand_in(filled[2], OrderedDict if filled[1] == "SETITEM" else list)
    return filled is not None


def _stand_in(name: str, container: type | None = None) -> type:
    """Return a class that stands in for one of somebody's own; what it makes is a plain container where given."""
    own: dict[str, Any] = {"name": name, "__module__": "inert"}
    if container is not None:
        own["__new__"] = lambda _, *__, **___: container()
    return type(name, (_Inert,), own)


def _acts(name: str) -> bool:
    module, _, function = name.rpartition(".")
    return module.split(".")[0] in ACTING or (module == "builtins" and function in ACTING_BUILTINS)


def _refuse_program(path: Path, inert: Mapping[str, type], error: Exception) -> NoReturn:
    """Say why a file is refused; raise the error itself where it is only damaged."""
    text = str(error)
    # Not only pickles are refused, but those with other errors.
    if "Only persistent_load of storage is allowed" in text:  # with its source beside it, as older files have modules
        raise UserError(f"{path}: refused, since it holds a whole module, {BY_RUNNING}") from error
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        found = re.search(r"GLOBAL (\S+)", text) or re.search(r"to load (\w+)", text)
        what = f" ({found[1]})" if found else ", or is damaged"
        raise UserError(
            f"{path}: refused, since it holds a program or objects other than tensors{what}; take a .safetensors file"
        ) from error
    if inert and isinstance(error, TypeError):
        raise UserError(
            f"{path}: refused, since its tensors are made by classes of somebody's own ({', '.join(list(inert)[:8])}); "
            f"{SAVE_ANEW}, of plain tensors"
        ) from error
    raise error
