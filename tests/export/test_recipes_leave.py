"""Models of every recipe leave in a family, and those with role tokens come back as the start of another run."""

import finished_run
import numpy as np
import pytest
from small_model import write_preferences

from pit.config import ConfigError, DataConfig, override
from pit.export import export
from pit.model.pretrained import Pretrained
from pit.model.saving import written_shape
from pit.recipes import RECIPES, recipe
from pit.run.folder import Run
from pit.stages import rl, sft


def test_the_models_of_every_recipe_have_a_family_in_which_they_leave():
    """As docs/guides/export.md says; those of recipes that start from a model leave in the family of that model."""
    families = {}
    for name in RECIPES:
        config = recipe(name)
        for shape, reward_model in ((config.policy, False), (config.reward_model, True)):
            families.setdefault(name, set()).add(written_shape(shape, 300, reward=reward_model)[0].architecture)
    both = "ForCausalLM", "ForSequenceClassification"
    expected = {"hh": "Llama", "tiny": "Llama", "paper": "Gemma2", "demo": "Pit", "describe": "Pit", "relay": "Pit"}
    assert families == {name: {f"{family}{kind}" for kind in both} for name, family in expected.items()}


def test_a_run_starts_from_an_export_with_role_tokens(tmp_path):
    first = finished_run.finish(finished_run.role_run(tmp_path / "first", "tiny"), "rl-policy")
    folder = tmp_path / "policy"
    export(first, rl.POLICY, folder)
    config = recipe("tiny", Pretrained.open(folder))
    second = finished_run.prepared(Run(tmp_path / "second", override(config, ["data.synthetic_rows=400"])))
    assert second.template.hash == first.template.hash
    trained, started = rl.POLICY.load(first).params, sft.POLICY.fresh(second).params
    assert trained.keys() == started.keys()
    for name, value in trained.items():
        np.testing.assert_array_equal(started[name], value, err_msg=name)


def test_the_tokenizer_of_an_export_with_role_tokens_must_be_named(tmp_path):
    first = finished_run.finish(finished_run.role_run(tmp_path / "first", "tiny"), "rl-policy")
    folder = tmp_path / "policy"
    export(first, rl.POLICY, folder)
    config = override(recipe("tiny"), [f"base.path={folder}", "data.synthetic_rows=400"])
    with pytest.raises(ConfigError, match=f"tokenizer.path = None: .*--set tokenizer.path={folder}/tokenizer.json"):
        finished_run.prepared(Run(tmp_path / "second", config))
    with pytest.raises(ConfigError, match="has role tokens and no chat format; start from it with another recipe"):
        recipe(
            "chat", Pretrained.open(folder), DataConfig(task=None, path=str(write_preferences(tmp_path / "p.jsonl")))
        )
