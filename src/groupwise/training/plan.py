"""What settles a training: the complete recipe, the data, the classes and the seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from groupwise import models
from groupwise.data import Augmentation, Dataset, ImageBatches, Split
from groupwise.errors import UserError
from groupwise.models.network import Network
from groupwise.recipes import Recipe, recipe_of

DIGITS_SIDE, SMALL_SIDE = 32, 64


@dataclass(frozen=True)
class Plan:
    """A training, settled in all that its result depends on.

    Attributes:
        recipe: complete: its model and image_size are those trained.
        data: what the user named.
        dataset: the data set's own name.
        class_names: in the order of the network's outputs.
        channels: of the images, 1 or 3.
        seed: of the split, the first weights, the order and the augmentation.
        weights: the model file or run whose weights training starts from, or None.
        uncropped: whether the images have the network's size, so that nothing is to be cut off them.
    """

    recipe: Recipe
    data: str
    dataset: str
    class_names: tuple[str, ...]
    channels: int
    seed: int = 0
    weights: str | None = None
    uncropped: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input, in pixels."""
        assert self.recipe.image_size is not None
        return self.recipe.image_size

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        return {**asdict(self), "recipe": self.recipe.as_dict()}

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Plan":
        """Return the plan that `as_dict` gave."""
        try:
            values = {**content, "recipe": recipe_of(content["recipe"]), "class_names": tuple(content["class_names"])}
            return Plan(**values)
        except (KeyError, TypeError) as error:
            raise UserError(f"the run's recipe.json is damaged: {error}") from error


def default_recipe(dataset: Dataset) -> str:
    """Return the name of the recipe that suits a data set's images where the user names none."""
    if dataset.image_size is None or min(dataset.image_size) > SMALL_SIDE:
        return "photos"
    return "digits" if dataset.channels == 1 and max(dataset.image_size) <= DIGITS_SIDE else "cifar10"


def make_plan(dataset: Dataset, data: str, recipe: Recipe, *, seed: int = 0, weights: str | None = None) -> Plan:
    """Return the plan of a training on a data set, with the image size and the type settled.

    The recipe's size comes first; then the data's own, where all images have one and it is not above the network's;
    then the network's.

    Raises:
        UserError: an unknown model.
    """
    own = models.find(recipe.model).input_shape[:2]
    size = recipe.image_size
    if size is None:
        fits = dataset.image_size is not None and dataset.image_size[0] <= own[0] and dataset.image_size[1] <= own[1]
        size = dataset.image_size if fits else own
    dtype = fastest_dtype() if recipe.dtype == "auto" else recipe.dtype
    settled = replace(recipe, image_size=size, dtype=dtype)
    uncropped = dataset.image_size == size
    return Plan(settled, data, dataset.name, dataset.class_names, dataset.channels, seed, weights, uncropped)


def fastest_dtype(processor: Path = Path("/proc/cpuinfo")) -> Literal["float32", "mixed_bfloat16"]:
    """Return "mixed_bfloat16" where it is the faster type: oneDNN on a processor that multiplies bfloat16 itself.

    There a training in PyTorch is about twice as fast. Elsewhere, and in XLA on a CPU, bfloat16 is emulated.
    """
    flags = processor.read_text().split() if processor.exists() else []
    has_bfloat16 = "avx512_bf16" in flags or "amx_bf16" in flags
    return "mixed_bfloat16" if has_bfloat16 and keras.backend.backend() != "jax" else "float32"


def build_network(plan: Plan) -> Network:
    """Return the plan's network with fresh weights, the preprocessing of its images and its class names."""
    recipe = plan.recipe
    network = models.create(
        recipe.model,
        num_classes=len(plan.class_names),
        input_shape=(*plan.image_size, plan.channels),
        dtype=recipe.dtype,
        **recipe.model_arguments,
    )
    preprocessing = dict(network.metadata["preprocessing"])
    for name in ("mean", "std"):
        preprocessing[name] = _for_channels(preprocessing[name], plan.channels)
    if plan.uncropped:
        preprocessing["crop"] = 1.0
    network.metadata.update(preprocessing=preprocessing, class_names=list(plan.class_names))
    return network


def make_batches(
    split: Split,
    network: Network,
    batch_size: int,
    *,
    augmentation: Augmentation | None = None,
    label_smoothing: float = 0.0,
    shuffle: bool = False,
    seed: int = 0,
) -> ImageBatches:
    """Return a split as batches prepared the way the network's metadata says."""
    height, width, channels = network.architecture["input_shape"]
    preprocessing = network.metadata["preprocessing"]
    return ImageBatches(
        split,
        batch_size,
        (height, width),
        channels,
        len(network.metadata["class_names"]),
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        crop=preprocessing["crop"],
        interpolation=preprocessing["interpolation"],
        augmentation=augmentation,
        label_smoothing=label_smoothing,
        shuffle=shuffle,
        seed=seed,
    )


def with_channels(split: Split, channels: int) -> Split:
    """Return the split with its images in grey (1) or colour (3), whatever they are."""

    def read(index: int, smallest_side: int | None) -> NDArray[np.uint8]:
        image = split.read(index, smallest_side)
        if image.shape[-1] == channels:
            return image
        if channels == 3:
            return np.repeat(image, 3, axis=-1)
        # The luma of ITU-R 601, as Pillow's conversion to grey.
        luma = image @ np.array([0.299, 0.587, 0.114])
        return np.rint(luma).astype(np.uint8)[..., None]

    return Split(split.labels, split.names, read)


def transfer_weights(network: Network, source: Network) -> tuple[int, int]:
    """Copy every layer's weights that have the same name and shapes; return (layers copied, layers with weights)."""
    sources = {layer.name: layer for layer in source.layers}
    copied = total = 0
    for layer in network.layers:
        if not layer.weights:
            continue
        total += 1
        twin = sources.get(layer.name)
        if twin is not None and [v.shape for v in twin.weights] == [v.shape for v in layer.weights]:
            layer.set_weights(twin.get_weights())
            copied += 1
    return copied, total


def _for_channels(values: Sequence[float], channels: int) -> list[float]:
    """Return as many values as there are channels: their mean for one, the one for all."""
    if len(values) == channels:
        return list(values)
    return [sum(values) / len(values)] * channels
