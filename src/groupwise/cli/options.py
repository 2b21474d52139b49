"""What several commands share: options, and how their texts become values."""

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from groupwise.errors import UserError
from groupwise.frameworks import ANY_OF_THEM
from groupwise.recipes.recipe import is_rate

MOST = 10**6  # epochs, or images at a time: more would only overflow something
SEEDS = 2**32 - 1  # the largest seed that NumPy takes


def left_open(text: str, *names: str, **settings: Any) -> Any:
    """Return an option that is None where it is not given; its help says what that means.

    Args:
        text: the help.
        names: of the option, if it is not called as its parameter is.
        settings: of `typer.Option`.
    """
    return typer.Option(*names, help=text, show_default=False, **settings)


_BACKENDS = f"{ANY_OF_THEM}. Default: KERAS_BACKEND, else keras.json, else the first one installed"
Backend = Annotated[str | None, left_open(f"{_BACKENDS}.")]
TrainingBackend = Annotated[str | None, left_open(f"{_BACKENDS}; with --resume, the one that the run began on.")]
BatchSize = Annotated[int, typer.Option(min=1, max=MOST, help="Images at a time.")]
ImageSize = Annotated[
    str | None, left_open("Size of the network's input, such as 224 or 128x256.", metavar="PIXELS|HxW")
]
ModelArguments = Annotated[
    list[str] | None,
    left_open(
        "An argument of the network's own, such as form=a or convolution=separable; may be repeated.",
        *("--argument", "-a"),
        metavar="NAME=VALUE",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
SETTLED = {
    "name": "name the network itself",
    "num_classes": "the data or --classes says how many there are",
    "input_shape": "--image-size says how large the images are",
}
"""Arguments of `groupwise.models.create` that the commands settle, and how."""

NAMED = {
    "name": "a recipe is named with --recipe",
    "model": "the network is named with --model",
    "model_arguments": "the network's own arguments are given with --argument",
}
"""Settings of a recipe that have a way of their own."""

VALUES = {"--resume": ("run", "auto")}
"""Options that may have one of some values, or none, which means the first of them."""

_NAMES = {
    "checkpoints_kept": "--keep-checkpoints",
    "explained_class": "--cam-class",
    "images": "--check",
    "jit_compile": "--compile",
    "path": "--output",
    "restart": "--schedule restart",
    "synchronizes": "--no-sync-batch-norm",
    "tests": "--test",
}
"""Options that are not called as the library's argument is."""

_COMMANDS = {
    "accelerate": "accelerate",
    "models.create": "convert {weights} NAME",
    "models.list_models": "models",
    "train": "train",
}
"""What stands for the library's functions."""


def option(name: str, value: object = None) -> str:
    """Return what an argument of the library's is called here, where sentences name it.

    Examples:
        >>> option("batch_size", 8), option("resume", True), option("image_size", (128, 256))
        ('--batch-size 8', '--resume', '--image-size 128x256')
    """
    words = _NAMES.get(name, f"--{name.replace('_', '-')}")
    if value is None or isinstance(value, bool):
        return words
    if isinstance(value, tuple):
        return f"{words} {value[0] if len(set(value)) == 1 else 'x'.join(map(str, value))}"
    return f"{words} {value}"


def as_command(name: str, *_: str, **named: object) -> str:
    """Return the command that does what a function of the library does, where sentences name it.

    Examples:
        >>> as_command("models.create", "NAME", weights="a.pth")
        '`groupwise convert a.pth NAME`'
    """
    return f"`groupwise {_COMMANDS[name].format(**named)}`"


def check_rate(learning_rate: float) -> None:
    """Raise UserError unless a number can be a learning rate."""
    if not is_rate(learning_rate):
        raise UserError(f"{option('learning_rate', learning_rate)}: must be positive and finite")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return "224" as (224, 224), and "128x256" as (128, 256): height and width in pixels."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:[x,]([1-9]\d*))?", text.strip())
    if match is None:
        raise UserError(f"--image-size {text}: must be one number of pixels, or height x width such as 128x256")
    return int(match[1]), int(match[2] or match[1])


def parse_arguments(texts: Sequence[str] | None) -> dict[str, Any]:
    """Return ["form=a", "groups=4"] as {"form": "a", "groups": 4}: values are JSON, else texts."""
    arguments = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise UserError(f"--argument {text}: must be NAME=VALUE, such as form=a")
        if name in SETTLED:
            raise UserError(f"--argument {text}: is no argument of the network's own; {SETTLED[name]}")
        arguments[name] = _value(value)
    return arguments


def parse_settings(texts: Sequence[str] | None) -> dict[str, Any]:
    """Return ["epochs=4", "augmentation.flip=true"] as {"epochs": 4, "augmentation": {"flip": True}}."""
    settings: dict[str, Any] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        table, dot, within = name.partition(".")
        if not separator or not table.isidentifier() or (dot and not within.isidentifier()):
            raise UserError(f"--set {text}: must be NAME=VALUE, such as weight_decay=0.01 or augmentation.flip=true")
        if table in NAMED:
            raise UserError(f"--set {text}: {NAMED[table]}")
        before = settings.get(table)
        if dot:
            settings[table] = {**(before if isinstance(before, dict) else {}), within: _value(value)}
        else:
            settings[name] = _value(value)
    return settings


def parse_test(text: str) -> tuple[str | None, str]:
    """Return "shift=photos/" as ("shift", "photos/"), and without a name (None, "photos/").

    What stands before the first "=" is a name where it is a word: not in "runs/a=b" or "./a=b", which are paths, nor in
    an address.
    """
    before, _, after = text.partition("=")
    name, data = (before, after) if "=" in text and re.fullmatch(r"\w[\w.-]*", before) else (None, text)
    if not data:
        raise UserError(f"--test {text}: must be DATA or NAME=DATA, such as night=photos-at-night/")
    return name, data


def _value(text: str) -> Any:
    """Return what a text is: JSON, or Python's word for a constant, else itself."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
