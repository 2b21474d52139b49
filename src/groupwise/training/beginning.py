"""What comes before a run's first step: its images, its network, its folder."""

from dataclasses import replace

import keras

from groupwise import backends
from groupwise.data import Dataset, ImageBatches, Split, Variation
from groupwise.data.dataset import SplitRule
from groupwise.data.record import SplitRecord, copies_in, record_of
from groupwise.errors import UserError, argument
from groupwise.frameworks import FRAMEWORKS
from groupwise.inference.preprocessing import make_batches
from groupwise.inference.recorded import divide_for, read_record
from groupwise.models.network import Network
from groupwise.models.steps import run_recorded
from groupwise.recipes import Recipe
from groupwise.training.events import Noted, ReadingBegun, ReadingEnded, WeightsTaken
from groupwise.training.keeping import Keeper
from groupwise.training.optimizers import make_optimizer
from groupwise.training.plan import Plan, build_network
from groupwise.training.session import Judge, Run, Session
from groupwise.training.starting import are_published, start_from
from groupwise.training.state import build_metrics
from groupwise.training.workspace import environment
from groupwise.writing import make_folder

FEW_STEPS = 4
"""An epoch of fewer steps is one that a recipe was not made for."""


def recorded(plan: Plan, dataset: Dataset) -> tuple[Dataset, SplitRecord, list[str]]:
    """Return a new run's data, its record, and what in it is known to the weights that the run begins with."""
    notes, earlier = copies_in(dataset), None
    if plan.weights is not None and not are_published(plan.weights):
        notes += divide_for(dataset, plan.weights, as_given=True)[1]
        earlier = read_record(plan.weights)
    share = plan.recipe.validation
    if share and dataset.validation is not None:
        own = f"{dataset.name} has images for validation of its own, which choose the best model"
        notes.append(f"{own}: {argument('validation', share)} sets no others aside")
    elif share:
        dataset = _with_validation(dataset, share, earlier)
    return dataset, record_of(dataset, earlier), notes


def _with_validation(dataset: Dataset, share: float, earlier: SplitRecord | None) -> Dataset:
    """Return the data with a share set aside: of the images that earlier weights have seen, those that chose these."""
    if earlier is None:
        return dataset.with_validation(SplitRule(dataset.rule.seed, share))
    rule = earlier.validation_rule or dataset.rule
    return dataset.with_validation(SplitRule(rule.seed, share), earlier.trained)


def large_batches(run: Run) -> list[str]:
    """Return the sentence that an epoch is too short for its batches, if so."""
    count, size = len(run.dataset.train), run.plan.recipe.batch_size
    if count >= FEW_STEPS * size:
        return []
    better = argument("batch_size", 2 ** max(0, (count // 10).bit_length() - 1))
    return [
        f"An epoch of {count} images is too short for batches of {size}, for which the recipe's learning rate is "
        f"meant: {better}, with a learning rate that is smaller in proportion, will suit them better."
    ]


def prepare(run: Run, keeper: Keeper) -> Session:
    """Return the network, compiled, and its images, read as far as memory holds them."""
    plan, dataset, distribution = run.plan, run.dataset, run.distribution
    recipe = replace(plan.recipe, learning_rate=plan.learning_rate)
    distribution.check_batch(min(recipe.batch_size, len(dataset.train)), recipe.accumulate)
    part = distribution.index, distribution.count
    network = build_network(plan)
    if not len(dataset.train):
        raise UserError(f"{dataset.name} has no images to train on")
    variation = Variation(recipe.augmentation, recipe.label_smoothing, True, plan.seed, plan.image_sizes)
    batches = _batches(dataset.train, network, recipe, variation, part)
    if dataset.validation is not None:
        judge = Judge("validation", make_batches(dataset.validation, network, recipe.batch_size, part=part))
    else:
        judge = Judge("test", make_batches(dataset.test, network, recipe.batch_size, part=part))
    run.observer(ReadingBegun())
    try:
        batches.load()
        judge.batches.load()
    finally:
        run.observer(ReadingEnded())
    framework = FRAMEWORKS[keras.backend.backend()]
    is_jitted = framework.compiles_training if recipe.jit_compile == "auto" else recipe.jit_compile
    if is_jitted and not backends.xla_compiles():
        is_jitted = False
        run.observer(Noted("The steps are not compiled: XLA on TensorFlow cannot pass through the core."))
    elif is_jitted and recipe.jit_compile != "auto":
        # Inductor compiles what was recorded of steps that it did not run.
        apart = " A resumed run is equal to rounding, not to the bit." if keras.backend.backend() == "torch" else ""
        run.observer(Noted(f"The steps are compiled: the first ones may take a minute or more.{apart}"))
    updates = batches.steps // recipe.accumulate
    network.compile(
        optimizer=make_optimizer(
            recipe, (recipe.epochs - plan.schedule_start) * updates, network, plan.schedule_start * updates
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        jit_compile=is_jitted,
    )
    build_metrics(network)
    # As it is: a run that is resumed would fold later than one that was not, and its losses round otherwise.
    run_recorded(network, folds=False)
    distribution.prepare(network)
    return Session(run, network, batches, judge, keeper)


def _batches(
    split: Split, network: Network, recipe: Recipe, variation: Variation, part: tuple[int, int]
) -> ImageBatches:
    """Return the batches to train on. Raises UserError where they do not divide into the steps that are wanted."""
    try:
        return make_batches(split, network, recipe.batch_size, variation, part, recipe.accumulate)
    except ValueError as error:
        if len(split) >= recipe.batch_size:
            raise
        few = f"the {len(split)} images to train on, fewer than a batch of {recipe.batch_size},"
        wrong = argument("accumulate", recipe.accumulate)
        raise UserError(f"{wrong}: {few} do not divide into as many steps; take smaller batches") from error


def begin(session: Session) -> None:
    """Write down what is to be done."""
    plan, folder = session.run.plan, session.run.folder
    if plan.weights is not None:
        session.run.observer(WeightsTaken(start_from(session.network, plan.weights)))
    try:
        session.write_record()
        folder.write_json(folder.recipe, plan.as_dict())
        folder.write_json(folder.environment, environment(keras.backend.backend(), accelerator()))
        if not folder.process:
            make_folder(folder.checkpoints)
    except BaseException:
        folder.discard()
        raise


def accelerator() -> str | None:
    """Return the name of the card that the framework trains on; None for a CPU."""
    card = backends.active.runtime().accelerator
    return None if card is None else card.name
