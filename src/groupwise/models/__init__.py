"""The networks by name: `create`, `list_models`, `describe`."""

import fnmatch
import importlib
import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import keras

from groupwise.errors import UserError, call, first_line
from groupwise.models.costs import Description, describe_model
from groupwise.models.network import Network, build_settings, without_values
from groupwise.models.registry import Variant
from groupwise.texts import did_you_mean, nearest

__all__ = ["Network", "create", "describe", "find", "list_models", "variants"]

FAMILIES: tuple[str, ...] = (
    "resnet",
    "senet",
    "resnext_cifar",
    "shufflenet",
    "shufflenet_v2",
    "mobilenet",
    "xception",
    "xception_aligned",
    "efficientnet",
    "mnist",
    "compact",
)
"""The modules of this room that hold a table `VARIANTS`."""


@cache
def variants() -> dict[str, Variant]:
    """Return every named network's table entry."""
    modules = [importlib.import_module(f"{__name__}.{family}") for family in FAMILIES]
    return {variant.name: variant for module in modules for variant in module.VARIANTS}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, sorted.

    Examples:
        >>> list_models("resnext50*")
        ['resnext50_32x4d']
    """
    return sorted(fnmatch.filter(variants(), pattern), key=_natural)


def create(
    name: str,
    num_classes: int | None = None,
    input_shape: Sequence[int | None] | None = None,
    include_top: bool = True,
    features: Sequence[str] | None = None,
    dtype: str | None = None,
    weights: str | Path | None = None,
    **arguments: Any,
) -> Network:
    """Build a network, with fresh weights or published ones.

    Args:
        name: one of `list_models()`.
        num_classes: of the head; None is the weights' or the network's own (1000 for ImageNet's, 10 for CIFAR's). Where
            the weights have another number, the head is fresh, and a warning says so.
        input_shape: (height, width, channels), or None for the weights' or the network's own; height and width may be
            None.
        include_top: False for the backbone alone, whose output is the last feature map.
        features: names of stages ("stem", "stage1", ...); the model then returns a dict of their outputs.
        dtype: a Keras dtype policy such as "mixed_bfloat16"; None is Keras's current one.
        weights: None for fresh ones, or a source of published ones: a `.safetensors`, `.pth`, `.pt`, `.bin`, `.ckpt`,
            `.h5` or `.npz` file; "hf:OWNER/NAME" (or "hf:OWNER/NAME@REVISION") of the Hugging Face hub; "package:NAME",
            which an installed Python package carries. What they expect of the network (padding, epsilon, where
            strides stand) and of its images comes with them.
        arguments: the family's own, such as form="a" or shuffle=False, and the head's, such as dropout=0.2.

    Returns:
        A `Network`, from (batch, height, width, channels) to logits (batch, num_classes), to a feature map or to a
        dict of feature maps.

    Raises:
        UserError: an unknown name (with the nearest ones), argument or stage, too small an image, or weights that
            cannot be had or do not fit: missing, unexpected and misshapen keys are listed.

    Examples:
        >>> create("resnext50_32x4d", num_classes=7).output_shape
        (None, 7)
    """
    if weights is not None:
        from groupwise.models.pretrained import create_pretrained

        network, note = create_pretrained(
            name, weights, num_classes, input_shape, include_top, features, dtype, **arguments
        )
        if note:
            warnings.warn(note, stacklevel=2)
        return network
    variant = find(name)
    num_classes = variant.num_classes if num_classes is None else num_classes
    if include_top and features is None and not (isinstance(num_classes, numbers.Integral) and num_classes >= 1):
        raise UserError(f"num_classes={num_classes!r}: must be an integer of at least 1")
    shape = _checked_shape(variant, variant.input_shape if input_shape is None else input_shape)
    dtype = dtype or keras.config.dtype_policy().name
    chosen = variant.with_arguments(arguments)
    with _blaming(name, arguments), build_settings(dtype):
        inputs = keras.Input(shape, name="image")
        stages = chosen.backbone.features(inputs)
        if features is not None:
            outputs = _choose(variant, stages, features)
        else:
            last = list(stages.values())[-1]
            outputs = chosen.head.logits(last, num_classes) if include_top else last
    architecture = {
        "name": name,
        "num_classes": num_classes,
        "input_shape": list(shape),
        "include_top": include_top,
        "features": None if features is None else list(features),
        "dtype": dtype,
        **arguments,
    }
    return Network(inputs, outputs, architecture, {"preprocessing": variant.preprocessing.as_dict()})


def find(name: str) -> Variant:
    """Return the table entry of a network. Raises UserError, naming the nearest names, for an unknown one."""
    try:
        return variants()[name]
    except KeyError:
        # A user's "resnxt50" means resnext50_32x4d: a name is as near as its first word.
        near = nearest(name, variants(), count=3, likeness=0.6, words=lambda known: (known, known.split("_")[0]))
        hint = did_you_mean(near) or f"{call('models.list_models')} lists them"
        raise UserError(f"model {name!r}: there is no such network; {hint}") from None


def describe(model_or_name: keras.Model | str) -> Description:
    """Return a row for each layer (output shape, parameters, MACs) and their totals.

    Args:
        model_or_name: any Keras model, or a name for `create`.

    Examples:
        >>> describe("resnext50_32x4d").trainable_parameters
        25028904
    """
    if not isinstance(model_or_name, str):
        return describe_model(model_or_name)
    with without_values():
        return describe_model(create(model_or_name))


@contextmanager
def _blaming(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a network's building raises into a sentence about the arguments that were given."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        given = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
        raise UserError(
            f"model {name!r} cannot be made{f' with {given}' if given else ''}: {first_line(error)}"
        ) from error


def _checked_shape(variant: Variant, given: Sequence[int | None]) -> tuple[int | None, ...]:
    """Return an input's shape as a tuple. Raises UserError where the network takes no such images."""
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 3 or not _are_sizes(given):
        raise UserError(f"input_shape={given!r}: must be (height, width, channels), the channels known")
    shape = tuple(given)
    sizes = [size for size in shape[:2] if size is not None]
    if sizes and min(sizes) < variant.reduction:
        raise UserError(
            f"input_shape={shape}: {variant.name} makes an image {variant.reduction} times smaller, so it needs at "
            f"least {variant.reduction}x{variant.reduction} pixels; enlarge the image or choose another network"
        )
    return shape


def _are_sizes(shape: Sequence[Any]) -> bool:
    sides = [side for side in shape[:2] if side is not None]
    return all(isinstance(size, numbers.Integral) and int(size) >= 1 for size in (*sides, shape[2]))


def _choose(variant: Variant, stages: dict[str, Any], features: Sequence[str]) -> dict[str, Any]:
    unknown = [name for name in features if name not in stages]
    if unknown or not features:
        raise UserError(f"features={list(features)}: {variant.name} has the stages {', '.join(stages)}")
    return {name: stages[name] for name in features}


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts resnet18 before resnet101."""
    words = "".join(c if c.isdigit() else f" {c} " for c in name).split()
    return [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words]
