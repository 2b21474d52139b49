"""A recipe: how a network is trained, and how settings become one."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from groupwise.data import Augmentation
from groupwise.errors import UserError
from groupwise.texts import did_you_mean, nearest

LARGEST = float(np.finfo(np.float32).max)
SIZES = 4
"""Stages in which images grow."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, complete but for the data and the network's shape.

    Attributes:
        name: the recipe's, or where it came from.
        model: the network that it was made for, and that is trained where none is named.
        model_arguments: further arguments of `groupwise.models.create`, such as convolution = "separable".
        image_size: (height, width) in pixels; None lets the data and the network decide.
        first_image_size: (height, width) of the first epochs' images, which grow to image_size in four stages (Tan & Le
            2021, section 4), as `image_sizes` has them; None: all epochs see image_size. What is tested has image_size
            throughout.
        epochs: passes over the training images.
        batch_size: images an update of the weights.
        optimizer: one of Keras's: "sgd", "adamw", ...
        optimizer_options: its further arguments, such as momentum and nesterov.
        learning_rate: the highest one.
        schedule: what the rate does after its linear warm-up: "cosine" or "linear" to zero, or "constant".
        warm_up: the share of all steps in which the rate rises from nearly zero.
        weight_decay: the share of each kernel (never of biases and norms) that a step at rate 1 takes off. It does
            not pass through the momentum: PyTorch's 5e-4 with momentum 0.9 is 5e-3 here.
        layer_decay: the learning rate of each layer, counted from the head down, as a share of the one above it, where
            the layers of a unit, of the stem and so on count as one; 1: all layers learn alike.
        clip_norm: the largest norm of all gradients together; 0: any.
        label_smoothing: the share of each label that is spread over all classes.
        average: the momentum of the weights' exponential moving average, which is then what is tested and saved;
            0: none.
        dtype: "float32" or "mixed_bfloat16". None: the second on a GPU that has instructions for it. "auto": there, and
            where the processor has them, through TensorFlow or PyTorch.
        jit_compile: whether steps are compiled, with XLA or PyTorch's Inductor. "auto": on JAX alone, since
            TensorFlow's own kernels for convolutions are faster on a CPU than XLA's, and Inductor gains nothing there.
        freeze_backbone: whether only the head learns, on the features of the weights that training starts from.
        freeze: which layers do not learn either: patterns of their names, with commas between them, such as
            "stem*,stage1*". Batch norms among them keep their moving statistics.
        augmentation: how training images are varied.
        validation: the share of the images to train on that is set aside to choose the best model by, where the data
            has no images for it; 0: the test images choose it.
        patience: the epochs without a better accuracy of the images that choose, after which the training ends; 0: it
            ends after `epochs`.
        accumulate: in how many steps of as many images the gradients of a batch are added up. The update is the same,
            but for batch norm, whose statistics are those of a step's images.
        class_weights: "balanced": a class counts in the loss as much as any other, however few images it has, by
            weights of their mean count over its own; "none".
        on_nan: what a loss that is not finite leads to: "stop", or "retry": the training goes back to the end of the
            epoch before, and on with a fifth of the learning rate, three times at most.
    """

    name: str
    model: str
    epochs: int
    batch_size: int
    learning_rate: float
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    first_image_size: tuple[int, int] | None = None
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warm_up: float = 0.0
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    average: float = 0.0
    dtype: Literal["float32", "mixed_bfloat16", "auto"] | None = None
    jit_compile: bool | Literal["auto"] = "auto"
    freeze_backbone: bool = False
    freeze: str = ""
    augmentation: Augmentation = field(default_factory=Augmentation)
    validation: float = 0.0
    patience: int = 0
    accumulate: int = 1
    class_weights: Literal["none", "balanced"] = "none"
    on_nan: Literal["stop", "retry"] = "stop"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _check(self, name, getattr(self, name) >= 1, "must be at least 1")
        _check(self, "accumulate", self.batch_size % self.accumulate == 0, f"must divide batch_size={self.batch_size}")
        first, last = self.first_image_size, self.image_size
        if first is not None:
            _check(self, "first_image_size", min(first) >= 1, "its sides are of at least 1 pixel")
            fits = last is None or (first[0] <= last[0] and first[1] <= last[1])
            _check(self, "first_image_size", fits, f"grows to image_size={last}, and must not be larger")
        _check(self, "learning_rate", is_rate(self.learning_rate), "must be positive and finite")
        _check(self, "patience", self.patience >= 0, "must not be negative")
        for name in ("label_smoothing", "average", "validation"):
            _check(self, name, 0 <= getattr(self, name) < 1, "lies in 0 to 1, without 1")
        _check(self, "warm_up", 0 <= self.warm_up <= 1, "is a share of the steps: it lies in 0 to 1")
        _check(self, "layer_decay", 0 < self.layer_decay <= 1, "is a share of a rate: it lies in 0 to 1, without 0")
        for name in ("weight_decay", "clip_norm"):
            _check(self, name, 0 <= getattr(self, name) <= LARGEST, "must be finite, and not negative")

    def rate_for(self, batch_size: int) -> float:
        """Return the learning rate for other batches, in proportion to their size (Goyal et al. 2017, section 2.1).

        Examples:
            >>> Recipe("r", "mnist_cnn", epochs=1, batch_size=64, learning_rate=0.1).rate_for(16)
            0.025
        """
        return self.learning_rate * batch_size / self.batch_size

    def image_sizes(self, multiple: int) -> dict[int, tuple[int, int]]:
        """Return the (height, width) of the images by the epoch, from 0, from which on they have it.

        The stages, each of them at least an epoch, are even parts of the epochs, and the last one has `image_size`.

        Args:
            multiple: what the sizes between the first and the last are rounded to.

        Examples:
            >>> sizes = {"image_size": (224, 224), "first_image_size": (128, 128)}
            >>> recipe = Recipe("r", "resnet50", epochs=90, batch_size=64, learning_rate=0.1, **sizes)
            >>> recipe.image_sizes(32)
            {0: (128, 128), 23: (160, 160), 45: (192, 192), 68: (224, 224)}
        """
        assert self.image_size is not None
        first, last, count = self.first_image_size or self.image_size, self.image_size, min(SIZES, self.epochs)
        sizes: dict[int, tuple[int, int]] = {}
        for stage in range(count):
            share = stage / (count - 1) if count > 1 else 1.0
            height, width = (_between(*ends, share, multiple) for ends in zip(first, last, strict=True))
            if (height, width) not in sizes.values():
                sizes[math.ceil(stage * self.epochs / count)] = height, width
        return sizes

    def with_settings(self, settings: Mapping[str, Any]) -> "Recipe":
        """Return it with other settings, as a recipe's file has them; of a table only what is named changes.

        Raises:
            UserError: as `recipe_of`.

        Examples:
            >>> recipe = Recipe("r", "mnist_cnn", epochs=1, batch_size=64, learning_rate=0.1)
            >>> recipe.with_settings({"epochs": 2, "augmentation": {"flip": True}}).augmentation.flip
            True
        """
        whole = self.as_dict()
        for name, value in settings.items():
            own = whole.get(name)
            whole[name] = {**own, **value} if isinstance(own, Mapping) and isinstance(value, Mapping) else value
        return recipe_of(whole)

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON, of which `recipe_of` makes it again."""
        return asdict(self)


def _between(first: int, last: int, share: float, multiple: int) -> int:
    """Return a side a share of the way from the first to the last one, which alone need not be multiples."""
    if share in (0, 1):
        return last if share else first
    return min(max(multiple * round((first + (last - first) * share) / multiple), first), last)


def is_rate(value: float) -> bool:
    """Return whether a number can be a learning rate: positive, and finite as float32, in which weights are updated."""
    return 0 < value <= LARGEST


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe that these settings make.

    Raises:
        UserError: a setting is unknown (with the nearest one), missing, of another type or out of its range.
    """
    where = f"recipe {settings.get('name', '')!r}"
    settings = dict(settings)
    if isinstance(settings.get("augmentation"), Mapping):
        settings["augmentation"] = _augmentation(f"{where}: augmentation", settings["augmentation"])
    values = _typed(where, Recipe, settings)
    missing = {"name", "model", "epochs", "batch_size", "learning_rate"} - values.keys()
    if missing:
        raise UserError(f"{where} lacks {', '.join(sorted(missing))}")
    return Recipe(**values)


def _augmentation(where: str, settings: Mapping[str, Any]) -> Augmentation:
    try:
        return Augmentation(**_typed(where, Augmentation, settings))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _typed(where: str, kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as a dataclass takes them: lists as tuples, integers as floats where it says float."""
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in settings.items():
        if name not in hints:
            hint = did_you_mean(nearest(name, hints)) or f"it takes {', '.join(hints)}"
            raise UserError(f"{where}: unknown setting {name!r}; {hint}")
        values[name] = _convert(f"{where}: {name}", value, hints[name])
    return values


def _convert(where: str, value: Any, hint: Any) -> Any:
    for option in _alternatives(hint):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and value in arguments:
            return value
        if origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(arguments):
            return tuple(_convert(where, item, kind) for item, kind in zip(value, arguments, strict=True))
        if option is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
            return float(value)
        if origin is Mapping and isinstance(value, Mapping):
            return dict(value)
        if isinstance(option, type) and isinstance(value, option) and isinstance(value, bool) == (option is bool):
            return value
    raise UserError(f"{where} = {value!r}: must be {_readable(hint)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _readable(hint: Any) -> str:
    if len(_alternatives(hint)) > 1:
        return " or ".join(_readable(option) for option in _alternatives(hint) if option is not type(None))
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(typing.get_args(hint))} numbers"
    return "a table"


def _check(recipe: Recipe, name: str, condition: bool, rule: str) -> None:
    if not condition:
        raise UserError(f"recipe {recipe.name!r}: {name} = {getattr(recipe, name)!r}: {rule}")
