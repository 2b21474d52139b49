"""From the options of `groupwise train` to a plan: of a new run, or of one to go on with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from groupwise.cli.console import note
from groupwise.cli.options import option, parse_test
from groupwise.cli.processes import Start
from groupwise.errors import UserError
from groupwise.inference.run_folder import read_json
from groupwise.recipes import Recipe, load_recipe
from groupwise.training.checkpoints import epochs_finished
from groupwise.training.workspace import Workspace
from groupwise.writing import check_folder

if TYPE_CHECKING:
    from groupwise.data import Dataset
    from groupwise.training import Distribution, Plan

RUNS = Path("runs")
"""The folder of the runs for which no folder is named."""

ENDS = {"epochs", "patience"}
"""What of a recipe --resume may change."""


@dataclass(frozen=True)
class Wishes:
    """What the options say of a training; None, or nothing, for what is left open.

    Attributes:
        recipe, model, weights: as they were named.
        arguments: of the network.
        changes: of the recipe, by options of their own.
        settings: of it, too, by their names in it.
        seed, backend: of it.
        tests: further data to test on, each perhaps with a name.
        start: what settles the backend, and joins the other processes.
    """

    recipe: str | None
    model: str | None
    weights: str | None
    arguments: dict[str, Any]
    changes: dict[str, Any]
    settings: dict[str, Any]
    seed: int | None
    backend: str | None
    tests: Sequence[str]
    start: Start

    def __post_init__(self) -> None:
        for name in self.changes.keys() & self.settings.keys():
            raise UserError(f"--set {name}: {option(name)} sets it, too; name it once")


Planned: TypeAlias = tuple["Plan", "Dataset", Path, "Distribution", "dict[str, Dataset]"]
"""What is to be done, on which images, in which folder, by whom, and tested on which other images."""


def planned(data: str, output: Path | None, wishes: Wishes) -> Planned:
    """Return what a new run is to do.

    All that can be is checked before a framework starts, but where there are several processes: these meet first, since
    one that ended before would be waited for.
    """
    from groupwise.data import load_dataset
    from groupwise.inference.recorded import divide_for

    distribution = wishes.start(wishes.backend) if wishes.start.is_one_of_several else None
    recipe, model, weights = wishes.recipe and load_recipe(wishes.recipe), wishes.model, wishes.weights
    if output is None:
        check_folder(RUNS, option("output", RUNS))
    else:
        # The first of several alone: all of them would lock what a killed run left, and take one another for trainings.
        Workspace(output, 0 if distribution is None else distribution.index).open(resume=False)
    seed = wishes.seed or 0
    dataset = load_dataset(data, seed=seed)
    if weights is not None and wishes.seed is None:
        dataset, _ = divide_for(dataset, weights)  # what may mislead is said by train()
    tests, opened = _opened(wishes.tests)
    distribution = distribution or wishes.start(wishes.backend)
    from groupwise.training import make_plan
    from groupwise.training.plan import default_recipe
    from groupwise.training.starting import model_of

    recipe = recipe or load_recipe(default_recipe(dataset))
    if weights is not None and model is None:
        model = model_of(weights)
    recipe, notes = _changed(recipe, model, wishes)
    plan = make_plan(dataset, data, recipe, seed=seed, weights=weights, tests=tests)
    for text in notes:
        note(text)
    folder = distribution.first(output or _new_folder(dataset.name, recipe.model))
    return plan, dataset, folder, distribution, opened


def _opened(texts: Sequence[str]) -> tuple[dict[str, str], "dict[str, Dataset]"]:
    """Return further data to test on by their names: as the user named them, and opened."""
    from groupwise.data import load_dataset

    named: dict[str, str] = {}
    opened = {}
    for text in texts:
        given, data = parse_test(text)
        try:
            dataset = load_dataset(data, test_fraction=1)
        except UserError as error:
            raise UserError(f"--test {text}: {error}") from error
        name = given or dataset.name
        if name in named:
            raise UserError(f"--test {text}: {named[name]} is called {name}, too; give it another one with NAME=DATA")
        named[name], opened[name] = data, dataset
    return named, opened


def _new_folder(dataset: str, model: str) -> Path:
    """Return a name below the folder of runs that is free, of a data set's and a network's names."""
    stem = f"{Path(dataset).stem}-{model}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 10_000))]
    return next(RUNS / name for name in names if not (RUNS / name).exists())


def _changed(recipe: Recipe, model: str | None, wishes: Wishes) -> tuple[Recipe, list[str]]:
    """Return the recipe with what the options say instead, and a sentence on what else that changes, if so."""
    if model is not None and model != recipe.model:
        recipe = replace(recipe, model=model, model_arguments={})
    if wishes.settings.get("optimizer", recipe.optimizer) != recipe.optimizer:
        recipe = replace(recipe, optimizer_options={})
    changes = {"model_arguments": wishes.arguments, **wishes.changes, **wishes.settings}
    changed = recipe.with_settings(changes)
    if changed.batch_size == recipe.batch_size or "learning_rate" in changes:
        return changed, []
    scaled = replace(changed, learning_rate=recipe.rate_for(changed.batch_size))
    rates = f"the learning rate is {scaled.learning_rate:g}, and not the recipe's {recipe.learning_rate:g}"
    sizes = f"batches are of {changed.batch_size} images instead of {recipe.batch_size}"
    return scaled, [f"{rates}, since {sizes}; {option('learning_rate')} says otherwise"]


def resumed(
    data: str,
    output: Path,
    wishes: Wishes,
    restart: bool,
) -> Planned:
    """Return what the run in a folder is to do from now on, on the backend that it ran on, perhaps to another end."""
    from groupwise.data import load_dataset

    folder, backend = Workspace(output), wishes.backend
    if not wishes.start.is_one_of_several:
        folder.open(resume=True)
    if backend is None and folder.environment.exists():
        backend = read_json(folder.environment).get("backend")
    distribution = wishes.start(backend)
    if wishes.start.is_one_of_several:  # these meet first, as for a new run
        Workspace(output, distribution.index).open(resume=True)
    from groupwise.inference.recorded import divide_for
    from groupwise.training import Plan, extend_plan
    from groupwise.training.testing import load_tests

    plan = Plan.of(read_json(folder.recipe))
    _refuse_changes(plan, output, wishes)
    given = {**wishes.changes, **wishes.settings}
    moved = plan.recipe.with_settings({name: given[name] for name in ENDS & given.keys()})
    plan = extend_plan(plan, epochs_finished(folder.checkpoints), moved.epochs, restart, moved.patience)
    tests, opened = _opened(wishes.tests) if wishes.tests else (plan.tests, load_tests(plan.tests))
    plan = replace(plan, tests=tests)
    dataset, _ = divide_for(load_dataset(data), output)  # what may mislead is said by train()
    return plan, dataset, output, distribution, opened


def _refuse_changes(plan: "Plan", folder: Path, wishes: Wishes) -> None:
    """Raise UserError for an option that says something else than a run's plan, but for its end."""
    recipe = plan.recipe
    given = {
        "model": (wishes.model, recipe.model),
        "recipe": (wishes.recipe and Path(wishes.recipe).stem, recipe.name),
        "weights": (wishes.weights, plan.weights),
        "argument": (wishes.arguments or None, {name: recipe.model_arguments.get(name) for name in wishes.arguments}),
        "seed": (wishes.seed, plan.seed),
    }
    others = [option(name) for name, (value, settled) in given.items() if value is not None and value != settled]
    for settings, named in ((wishes.changes, option), (wishes.settings, "--set {}".format)):
        asked = {name: value for name, value in settings.items() if name not in ENDS}
        if asked.get("dtype") == "auto":
            del asked["dtype"]  # the plan has the type that it stood for
        others += [named(name) for name, value in asked.items() if recipe.with_settings({name: value}) != recipe]
    if others:
        raise UserError(
            f"{others[0]} cannot be changed by --resume: the run in {folder} goes on as it began; "
            f"begin a new one from what it has learnt with --weights {folder}"
        )
