"""What a model's file must not ask for: programs, other files, and sizes that its weights do not have.

Keras's safe mode refuses programs. It imports, looks up and calls what a description names, though, and what it refuses
besides depends on its version.
"""

import importlib.util
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import keras

from groupwise.errors import UserError
from groupwise.weights.hdf5 import BOMB, EXPANSION

PARTS = {
    *("activations", "constraints", "dtype_policies", "initializers", "layers", "losses", "metrics", "models", "ops"),
    *("optimizers", "quantizers", "random", "regularizers", "src"),
}
"""The modules of Keras whose classes are parts of models."""
FUNCTIONS = {"builtins", "keras.activations", "keras.initializers", "keras.losses", "keras.metrics", "keras.ops"}
"""Where the functions lie that layers may call; "builtins" is what Keras calls the first of its own."""
PACKAGES = ("keras_hub", "keras_cv", "keras_nlp")
PROGRAMS = {
    "TFSMLayer": "reads a SavedModel from another folder",
    "TorchModuleWrapper": "holds a pickled program",
    "JaxLayer": "holds a program",
    "FlaxLayer": "holds a program",
}
FILES = ("vocabulary", "merges", "proto", "filepath")
"""Arguments that are the name of a file to read where they are a text."""
SIZES = ("units", "filters", "input_dim", "output_dim", "num_classes", "depth_multiplier", "num_heads", "key_dim")
"""Arguments that are the size of some weight."""
SMALL = 2**16  # a size that needs no proof
PRODUCTS = (
    *(("input_dim", "output_dim"), ("input_dim", "units"), ("num_heads", "key_dim")),
    *(("filters", "kernel_size"), ("depth_multiplier", "kernel_size")),
)
"""Arguments of a layer whose product is the size of a weight, or a part of that."""
LITTLE = 2**24  # numbers that need no proof, in all layers together
A_BYTE = 2  # numbers: Keras's int4


def check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse a .keras file with parts that would lie outside its folder, or that are much larger than they are stored.

    Raises:
        UserError: there is such a part.
    """
    for member in archive.infolist():
        place = PurePosixPath(member.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or ":" in member.filename:
            raise UserError(f"{path} is refused, since its part {member.filename!r} would lie outside its folder")
        if member.file_size > max(BOMB, EXPANSION * member.compress_size):
            size = f"{member.file_size:,} bytes"
            raise UserError(f"{path} is refused, since its part {member.filename!r} would become {size}")


def check_config(path: Path, config: dict[str, Any], stored: int) -> None:
    """Refuse a model's description that names anything but parts of models, or sizes beyond its weights.

    Args:
        path: of the model, for the message.
        config: as Keras serialises a model. What that was compiled with is not looked at, since it is not read.
        stored: the size of its weights, in bytes: no weight can be longer, nor all together have many more numbers.

    Raises:
        UserError: the description is refused, or needs a class that is not there.
    """
    numbers = 0
    for part in _parts({name: value for name, value in config.items() if name != "compile_config"}):
        for name in FILES:
            if isinstance(part.get(name), str):
                raise UserError(f"{path} is refused, since it would read another file ({name}={part[name]!r})")
        _check_sizes(path, part, SIZES, stored)
        numbers += _least_numbers(part)
        if numbers > max(LITTLE, A_BYTE * stored):
            named = ", ".join(f"{name}={part[name]}" for name in (*SIZES, "kernel_size") if name in part)
            raise UserError(f"{path} is refused, since it has not the weights for {named}")
        if isinstance(part.get("architecture"), dict):
            _check_sizes(path, part["architecture"], tuple(part["architecture"]), stored)
        if isinstance(part.get("class_name"), str) and "config" in part:
            _check_object(path, part)


def _parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yield all names and values within a description, at any depth."""
    waiting = [config]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found


def _check_sizes(path: Path, part: dict[str, Any], names: tuple[str, ...], stored: int) -> None:
    for name in names:
        value = part.get(name)
        for size in value if isinstance(value, list) else [value]:
            if isinstance(size, int | float) and not size <= max(SMALL, stored):
                raise UserError(f"{path} is refused, since it has not the weights for {name}={value}")


def _least_numbers(part: dict[str, Any]) -> int:
    """Return how many numbers the weights of a layer have at least; 0 for what is no layer."""
    sizes = {name: math.prod(_sizes(part[name], name)) for names in PRODUCTS for name in names if name in part}
    most = max((math.prod(sizes.get(name, 0) for name in names) for names in PRODUCTS), default=0)
    if "recurrent_initializer" in part:  # from each unit, or filter, to each
        size = max((math.prod(_sizes(part.get(name), name)) for name in ("units", "filters")), default=0)
        most = max(most, size**2)
    return most


def _sizes(value: Any, name: str) -> list[int]:
    """Return an argument's sizes, of which one alone stands for each of a kernel's sides; 0 for what is none."""
    is_kernel = name == "kernel_size"
    sizes = value if isinstance(value, list) and is_kernel else [value] * (2 if is_kernel else 1)
    return [size if isinstance(size, int) and size > 0 else 0 for size in sizes]


def _check_object(path: Path, part: dict[str, Any]) -> None:
    """Refuse what Keras would look up for an object or a function in a description."""
    name, module, config = part["class_name"], part.get("module"), part["config"]
    if name == "__lambda__" or (name == "Lambda" and _has_code(config)):
        raise UserError(f"{path} is refused, since it holds a program (a Lambda layer), not only a model")
    if name in PROGRAMS:
        raise UserError(f"{path} is refused, since its {name} {PROGRAMS[name]}: it holds not only a model")
    if name.startswith("__"):
        return  # values, such as a tensor
    if name == "function":
        _check_function(path, config, module)
    elif "module" in part and keras.saving.get_registered_object(part.get("registered_name") or name) is None:
        _check_class(path, name, part["module"])


def _has_code(config: Any) -> bool:
    """Return whether a Lambda of Keras 2 holds Python's bytecode."""
    if not isinstance(config, dict):
        return True
    return isinstance(config.get("function"), list) or config.get("function_type") == "lambda"


def _check_function(path: Path, name: Any, module: Any) -> None:
    if keras.saving.get_registered_object(str(name)) is not None:
        return
    if module is None:
        raise unknown(path, str(name))
    if module not in FUNCTIONS and not str(module).startswith("keras.ops."):
        raise UserError(f"{path} is refused, since it would call {module}.{name}, which is no part of a model")


def _check_class(path: Path, name: str, module: Any) -> None:
    words = module.split(".") if isinstance(module, str) else [""]
    if words[0] in PACKAGES:
        if importlib.util.find_spec(words[0]) is None:
            package = words[0].replace("_", "-")
            raise UserError(f"{path} needs {words[0]}, which is not installed: pip install {package}")
    elif words[0] != "keras":
        raise unknown(path, name)
    elif len(words) > 1 and words[1] not in PARTS:
        raise UserError(f"{path} is refused, since it asks for {module}.{name}, which is no part of a model")


def unknown(path: Path, name: str) -> UserError:
    """Return what to say of a model with a class or function of somebody's own that is not known here."""
    return UserError(
        f"{path} needs {name}, of somebody's own, which is not known here: in Python, import the module that registers "
        "it with Keras, load the model, and pass it to groupwise's functions, such as groupwise.rewrite.accelerate"
    )
