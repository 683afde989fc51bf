"""Recipes: short functions that return a frozen config; each docstring says what it needs and what to expect."""

from collections.abc import Callable

from pit.config import ConfigError, RunConfig
from pit.recipes.demo import demo, tiny
from pit.recipes.describe import describe
from pit.recipes.hh import hh
from pit.recipes.paper import paper
from pit.recipes.relay import relay

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe for recipe in (demo, tiny, describe, relay, hh, paper)
}


def recipe(name: str) -> RunConfig:
    """Return the config of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r}: must be one of {', '.join(RECIPES)}; for example pit run demo")
    return RECIPES[name]()
