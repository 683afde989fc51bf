"""Recipes: short functions that return a frozen config; each docstring says what it needs and what to expect."""

from collections.abc import Callable

from pit.config import ConfigError, DataConfig, RunConfig, TemplateConfig
from pit.model.pretrained import Pretrained
from pit.recipes.chat_model import chat, from_model, smollm2
from pit.recipes.demo import demo, tiny
from pit.recipes.describe import describe
from pit.recipes.hh import hh
from pit.recipes.instruct import DATA as INSTRUCT_DATA
from pit.recipes.instruct import instruct
from pit.recipes.lengths import Sizes, measure
from pit.recipes.paper import paper
from pit.recipes.relay import relay

RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__: recipe for recipe in (demo, tiny, describe, relay, hh, paper)
}
"""Recipes with sizes of their own."""

CHAT_RECIPES: dict[str, Callable[[Pretrained, Sizes], RunConfig]] = {
    recipe.__name__: recipe for recipe in (chat, smollm2, instruct)
}
"""Recipes that size themselves by a pretrained model and the preferences."""

OWN_DATA: dict[str, DataConfig] = {instruct.__name__: INSTRUCT_DATA}
"""Preferences that recipes of `CHAT_RECIPES` bring along; others are given with --data."""

NAMES = (*RECIPES, *CHAT_RECIPES)


def recipe(
    name: str,
    model: Pretrained | None = None,
    data: DataConfig | None = None,
    template: TemplateConfig | None = None,
) -> RunConfig:
    """Return the config of a recipe.

    Args:
        name: its name.
        model: pretrained model that the run starts from; None for random weights.
        data: preferences by which a recipe of `CHAT_RECIPES` sizes itself, where their path is given.
        template: chat template and request, if they are not the default ones.

    Raises:
        ConfigError: there is no such recipe, or it lacks a model or preferences.
        DataError: the preferences, or the model's chat format, cannot be used.
    """
    if name in RECIPES:
        config = RECIPES[name]()
        return config if model is None else from_model(config, model)
    if name not in CHAT_RECIPES:
        raise ConfigError(f"recipe {name!r}: must be one of {', '.join(NAMES)}; for example pit run demo")
    if model is None:
        raise ConfigError(f"recipe {name}: starts from a pretrained model; name its folder or file with --model PATH")
    if data is None or data.path is None:
        data = OWN_DATA.get(name)
    if data is None:
        raise ConfigError(f"recipe {name}: sizes itself by the preferences; name them with --data PATH")
    return CHAT_RECIPES[name](model, measure(model, data, template or TemplateConfig()))
