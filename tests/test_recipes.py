"""Recipes: files of data, read strictly."""

import math
from pathlib import Path

import pytest

from groupwise.data import Augmentation
from groupwise.errors import UserError
from groupwise.models import variants
from groupwise.recipes import Recipe, introduction, list_recipes, load_recipe, recipe_of

pytestmark = pytest.mark.once
LEAST = {"name": "r", "model": "mnist_cnn", "epochs": 1, "batch_size": 2, "learning_rate": 0.1}


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_of_the_package_is_read_and_names_a_network(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.model in variants()
    assert introduction(name).startswith("groupwise train ")


def test_a_recipe_survives_json() -> None:
    recipe = load_recipe("imagenet")
    assert recipe_of(recipe.as_dict()) == recipe


def test_integers_are_numbers_and_lists_are_tuples() -> None:
    recipe = recipe_of({**LEAST, "learning_rate": 1, "image_size": [8, 16], "augmentation": {"resized_crop": [0.5, 1]}})
    assert recipe.learning_rate == 1.0
    assert recipe.image_size == (8, 16)
    assert recipe.augmentation == Augmentation(resized_crop=(0.5, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lerning_rate": 0.1}, "unknown setting 'lerning_rate'; did you mean learning_rate?"),
        ({"augmentation": {"flipp": True}}, "augmentation: unknown setting 'flipp'; did you mean flip?"),
        ({"augmentation": {"erase": 2.0}}, "augmentation: erase=2.0"),
        ({"augmentation": 3}, "augmentation = 3: must be a table"),
        ({"epochs": "ten"}, "epochs = 'ten': must be an integer"),
        ({"epochs": True}, "epochs = True: must be an integer"),
        ({"epochs": 0}, "epochs = 0: must be at least 1"),
        ({"schedule": "cosin"}, "schedule = 'cosin': must be 'cosine' or 'linear' or 'constant'"),
        ({"image_size": [8]}, "image_size"),
        ({"jit_compile": "no"}, "jit_compile = 'no': must be true or false or 'auto'"),
        ({"warm_up": 2}, "warm_up = 2.0"),
        ({"average": 1}, "average = 1.0"),
        ({"learning_rate": -1}, "learning_rate = -1.0: must be positive"),
        *(({"learning_rate": rate}, "must be positive and finite") for rate in (math.inf, math.nan, 1e39)),
        ({"weight_decay": math.nan}, "weight_decay = nan: must be finite"),
    ],
)
def test_a_bad_setting_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        recipe_of({**LEAST, **change})
    assert message in str(error.value)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UserError, match="lacks batch_size, epochs"):
        recipe_of({"name": "r", "model": "mnist_cnn", "learning_rate": 0.1})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        load_recipe("digit")


def test_a_recipe_can_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('model = "mnist_cnn"\nepochs = 3\nbatch_size = 8\nlearning_rate = 0.1\n')
    assert load_recipe(str(path)) == Recipe("mine", "mnist_cnn", 3, 8, 0.1)
    path.write_text("epochs = = 3")
    with pytest.raises(UserError, match="is not TOML"):
        load_recipe(str(path))
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))
