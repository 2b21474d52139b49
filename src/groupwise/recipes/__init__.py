"""Recipes: how a network is trained, as files of data. Reading them imports no framework.

Each `.toml` file beside this one opens with its command, cost and result, and becomes a `Recipe`.
"""

from groupwise.recipes.finding import introduction, list_recipes, load_recipe
from groupwise.recipes.recipe import Recipe, recipe_of

__all__ = ["Recipe", "introduction", "list_recipes", "load_recipe", "recipe_of"]
