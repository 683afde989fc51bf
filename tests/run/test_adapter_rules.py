"""Adapters that do not fit are refused before anything is trained, with the field that is to be changed."""

import re

import pytest

from pit.config import FieldError, override
from pit.recipes.demo import tiny
from pit.stages import reward, rl, sft

RANK = "sft_policy.adapter.rank=2"


def refusal(stage, *settings):
    with pytest.raises(FieldError) as raised:
        stage.validate(override(tiny(), settings))
    return str(raised.value)


def test_a_stage_trains_the_adapters_of_its_start():
    fields = "give rl_policy.adapter and sft_policy.adapter the same fields (dropout may differ), or none"
    rule = "stage rl-policy starts from sft-policy, so that it trains the same kind of weights"
    assert refusal(rl.POLICY, RANK) == f"rl_policy.adapter = None: {rule}; {fields}"
    for other in ("rl_policy.adapter.rank=3", "rl_policy.adapter.alpha=1"):
        assert refusal(rl.POLICY, RANK, other).endswith(f"): {rule}; {fields}")
    assert refusal(rl.POLICY, "rl_policy.adapter.rank=2").endswith(f"): {rule}; {fields}")
    dropping = override(tiny(), [RANK, "rl_policy.adapter.rank=2", "sft_policy.adapter.dropout=0.5"])
    rl.POLICY.validate(dropping)
    reward.GAP.validate(override(tiny(), [RANK]))


def test_targets_match_a_projection():
    assert refusal(sft.POLICY, "sft_policy.adapter.targets=q_proj") == (
        "sft_policy.adapter.targets = 'q_proj': must match the whole name of a projection of the 1 layers, such as "
        r"model.layers.0.mlp.up_proj; for example sft_policy.adapter.targets=.*\.(q|v)_proj"
    )


def test_a_pattern_that_cannot_be_read_is_refused():
    message = r"sft_policy.adapter.targets = '(': must be a regular expression (missing ), unterminated subpattern at "
    with pytest.raises(FieldError, match=f"^{re.escape(message)}"):
        override(tiny(), ["sft_policy.adapter.targets=("])


def test_reward_models_on_the_base_have_its_shape():
    said = refusal(reward.GAP, "reward_gap.adapter.rank=2", "reward_model.mlp=48")
    assert "the base has the shape of `policy`, but reward_model differs; set the fields of reward_model as" in said
    reward.GAP.validate(override(tiny(), ["reward_model.mlp=48"]))


def test_nothing_is_dropped_in_reinforcement_learning():
    message = (
        "rl_policy.adapter.dropout = 0.5: must be 0 in reinforcement learning, whose samples come from the model "
        "without dropout; set rl_policy.adapter.dropout=0"
    )
    with pytest.raises(FieldError, match=f"^{re.escape(message)}$"):
        override(tiny(), ["rl_policy.adapter.dropout=0.5"])


def test_a_section_that_is_off_is_on_where_a_field_is_set():
    config = override(tiny(), [RANK])
    assert (config.sft_policy.adapter.rank, config.sft_policy.adapter.alpha) == (2, 32.0)
    assert config.sft_improver.adapter is None
    assert override(config, ["sft_policy.adapter=none"]) == tiny()
