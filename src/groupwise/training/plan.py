"""What settles a training: the complete recipe, the data, the classes and the seed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import keras

from groupwise import backends, models
from groupwise.data import Dataset, Preprocessing
from groupwise.errors import UserError, argument
from groupwise.frameworks import FRAMEWORKS
from groupwise.machine import processor_flags
from groupwise.models.network import Network, without_values
from groupwise.recipes import Recipe, recipe_of
from groupwise.texts import did_you_mean, nearest
from groupwise.training.optimizers import optimizer_of
from groupwise.training.starting import HEAD, SETTLED_BY_THE_DATA, find_start

DIGITS_SIDE, SMALL_SIDE = 32, 64
MOST_RETRIES, SMALLER = 3, 5
"""How often a training that diverges goes back, and the part of the learning rate with which it goes on."""


@dataclass(frozen=True)
class Plan:
    """A training, settled in all that its result depends on.

    Attributes:
        recipe: complete: its model and image_size are those trained.
        data: what the user named.
        dataset: the data set's own name.
        class_names: in the order of the network's outputs.
        channels: of the images, 1 or 3.
        seed: of the first weights, the order, the augmentation, and of the split unless `weights` brought one.
        weights: the run, file or source of published weights that training starts from, or None.
        preprocessing: of the images; None for the network's own.
        schedule_start: the epoch after which the learning rate's schedule begins, which takes all epochs from there on;
            other than 0 where a run was resumed so.
        tests: what the user named of further data that the best model is tested on at the end, by its names.
        retries: how often the training went back after a loss that was not finite, each time to a fifth of the rate.
    """

    recipe: Recipe
    data: str
    dataset: str
    class_names: tuple[str, ...]
    channels: int
    seed: int = 0
    weights: str | None = None
    preprocessing: Preprocessing | None = None
    schedule_start: int = 0
    retries: int = 0
    tests: Mapping[str, str] = field(default_factory=dict)

    @property
    def learning_rate(self) -> float:
        """The highest learning rate from now on."""
        return self.recipe.learning_rate / SMALLER**self.retries

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the network's input, in pixels."""
        assert self.recipe.image_size is not None
        return self.recipe.image_size

    def as_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        return {**asdict(self), "recipe": self.recipe.as_dict()}

    @property
    def image_sizes(self) -> dict[int, tuple[int, int]]:
        """(height, width) of the images to train on, by the epoch, from 0, from which on they have it."""
        # Networks halve their images: a multiple of that power of two is divided evenly.
        return self.recipe.image_sizes(2 ** (models.find(self.recipe.model).reduction.bit_length() - 1))

    @staticmethod
    def of(content: Mapping[str, Any]) -> "Plan":
        """Return the plan that `as_dict` gave."""
        try:
            values = {**content, "recipe": recipe_of(content["recipe"]), "class_names": tuple(content["class_names"])}
            if content.get("preprocessing") is not None:
                values["preprocessing"] = Preprocessing.of(content["preprocessing"], content["channels"])
            return Plan(**values)
        except (KeyError, TypeError) as error:
            raise UserError(f"the run's recipe.json is damaged: {error}") from error


def extend_plan(
    plan: Plan, finished: int, epochs: int | None = None, restart: bool = False, patience: int | None = None
) -> Plan:
    """Return the plan of going on with a run to another end.

    Args:
        plan: the run's.
        finished: epochs so far.
        epochs: of all, these included; None: the plan's.
        restart: whether the learning rate's schedule, warm-up and all, begins anew for the epochs that are left.
            Otherwise it is that of a training planned for so many epochs from its beginning, at the step that was
            reached: a cosine that had ended at zero goes on from the middle of its fall.
        patience: the recipe's from now on; None: the plan's.

    Raises:
        UserError: fewer epochs than are finished, or none left to restart for.
    """
    total = plan.recipe.epochs if epochs is None else epochs
    if total < finished:
        says = f"the run has finished {finished} epochs: they can become more, not fewer"
        raise UserError(f"{argument('epochs', total)}: {says}")
    if restart and total == finished:
        says = f"none of the run's {total} epochs is left: ask for more with {argument('epochs')}"
        raise UserError(f"{argument('restart', True)}: {says}")
    start = finished if restart else plan.schedule_start
    patience = plan.recipe.patience if patience is None else patience
    return replace(plan, recipe=replace(plan.recipe, epochs=total, patience=patience), schedule_start=start)


def default_recipe(dataset: Dataset) -> str:
    """Return the name of the recipe that suits a data set's images where the user names none."""
    if dataset.image_size is None or min(dataset.image_size) > SMALL_SIDE:
        return "photos"
    return "digits" if dataset.channels == 1 and max(dataset.image_size) <= DIGITS_SIDE else "cifar10"


def make_plan(
    dataset: Dataset,
    data: str,
    recipe: Recipe,
    *,
    seed: int = 0,
    weights: str | None = None,
    tests: Mapping[str, str] | None = None,
) -> Plan:
    """Return the plan of a training on a data set, with the image size and the type settled.

    The recipe's size comes first; then the data's own, where all images have one and it is not above the network's;
    then the network's.

    What the weights expect of network and images settles the rest, where the recipe leaves it open. `tests` names
    further data that the best model is tested on at the end: names of the user's own to what `load_dataset` takes.

    Raises:
        UserError: an unknown model, an argument that it does not take or that is settled otherwise, an optimizer that
            Keras does not have, or weights that cannot be had or read.
    """
    for name in recipe.model_arguments:
        if name in (*SETTLED_BY_THE_DATA, "weights"):
            named = f"{argument('argument')} {name}={recipe.model_arguments[name]!r}"
            raise UserError(f"{named}: is no argument of the network's own, and settled without it")
    variant = models.find(recipe.model)
    variant.with_arguments(recipe.model_arguments)
    optimizer_of(recipe)
    start = None if weights is None else find_start(weights, recipe.model, recipe.model_arguments)
    if start is None and (recipe.freeze_backbone or recipe.freeze):
        use = f"name trained ones with {argument('weights')}"
        if recipe.freeze_backbone:
            raise UserError(f"{argument('freeze_backbone', True)}: a backbone of fresh weights is of no use; {use}")
        raise UserError(f"{argument('freeze', recipe.freeze)}: layers of fresh weights that do not learn; {use}")
    own = variant.input_shape[:2] if start is None else start.image_size
    size = recipe.image_size
    if size is None:
        fits = dataset.image_size is not None and dataset.image_size[0] <= own[0] and dataset.image_size[1] <= own[1]
        size = dataset.image_size if fits else own
    settled = replace(recipe, image_size=size, dtype=settled_dtype(recipe.dtype))
    preprocessing = variant.preprocessing
    channels: int = dataset.channels
    if start is not None:
        settled = replace(settled, model_arguments=dict(start.arguments))
        preprocessing = start.preprocessing or preprocessing
        channels = max(channels, start.channels)
    if dataset.image_size == size:
        # The images have the network's size: nothing is to be cut off them.
        preprocessing = replace(preprocessing, crop=1.0)
    return Plan(
        recipe=settled,
        data=data,
        dataset=dataset.name,
        class_names=dataset.class_names,
        channels=channels,
        seed=seed,
        weights=weights,
        preprocessing=preprocessing,
        tests=dict(tests or {}),
    )


def settled_dtype(
    wanted: Literal["float32", "mixed_bfloat16", "auto"] | None,
) -> Literal["float32", "mixed_bfloat16"]:
    """Return the type to train in: what a recipe says, else "mixed_bfloat16" where that is the faster one.

    It is on a GPU that multiplies bfloat16 itself, and, where "auto" asks for it, by oneDNN on such a processor: there
    a training in PyTorch is about twice as fast. Elsewhere, and by some frameworks, bfloat16 is emulated.
    """
    if wanted is not None and wanted != "auto":
        return wanted
    accelerator = backends.active.runtime().accelerator
    if accelerator is not None:
        is_faster = accelerator.has_bfloat16
    else:
        is_emulated = FRAMEWORKS[keras.backend.backend()].emulates_bfloat16
        has_bfloat16 = bool(processor_flags() & {"avx512_bf16", "amx_bf16"})
        is_faster = wanted == "auto" and has_bfloat16 and not is_emulated
    return "mixed_bfloat16" if is_faster else "float32"


def build_network(plan: Plan) -> Network:
    """Return the plan's network with fresh weights, the preprocessing of its images and its class names.

    What the recipe freezes does not learn, and its batch norms keep their moving statistics. Where the images grow, the
    network takes those of all sizes; read from a file, it takes the last one's again.

    Raises:
        UserError: it freezes all that could learn, or names no layer, or the first images have a size that the network
            cannot take.
    """
    recipe = plan.recipe
    network = _create(plan, plan.image_size)
    _freeze(network, recipe)
    if len(plan.image_sizes) > 1:
        _take_every_size(network, plan)
    preprocessing = plan.preprocessing or models.find(recipe.model).preprocessing
    network.metadata.update(
        preprocessing=preprocessing.for_channels(plan.channels).as_dict(), class_names=list(plan.class_names)
    )
    return network


def _create(plan: Plan, size: tuple[int, int]) -> Network:
    return models.create(
        plan.recipe.model,
        num_classes=len(plan.class_names),
        input_shape=(*size, plan.channels),
        dtype=plan.recipe.dtype,
        **plan.recipe.model_arguments,
    )


def _take_every_size(network: Network, plan: Plan) -> None:
    """Let a network take images of every size. Raises UserError where one for the first size is another network."""
    recipe, size, reduction = plan.recipe, plan.image_sizes[0], models.find(plan.recipe.model).reduction
    named = f"recipe {recipe.name!r}: first_image_size = {size}"
    if min(size) < reduction:
        least = f"needs at least {reduction}x{reduction} pixels"
        raise UserError(f"{named}: {recipe.model} makes an image {reduction} times smaller, and {least}")
    with without_values():
        small = _create(plan, size)
    if [weight.shape for weight in small.weights] != [weight.shape for weight in network.weights]:
        raise UserError(f"{named}: {recipe.model} has other weights for images of another size than {plan.image_size}")
    # Only the model's own check of its input knows a size: its layers compute with that of what they are given.
    network.input_spec = keras.layers.InputSpec(shape=(None, None, None, plan.channels), allow_last_axis_squeeze=True)


def _freeze(network: Network, recipe: Recipe) -> None:
    if recipe.freeze_backbone:
        for layer in network.layers:
            layer.trainable = layer.name == HEAD
    for pattern in filter(None, recipe.freeze.split(",")):
        named = [layer for layer in network.layers if layer.weights and fnmatchcase(layer.name, pattern.strip())]
        for layer in named:
            layer.trainable = False
        if not named:
            names = [layer.name for layer in network.layers if layer.weights]
            hint = did_you_mean(nearest(pattern, names)) or f"the first ones are {', '.join(names[:3])}"
            raise UserError(f"{argument('freeze', pattern)}: {network.name} has no such layer; {hint}")
    if not network.trainable_variables:
        raise UserError(f"{argument('freeze', recipe.freeze)}: nothing is left that learns")
