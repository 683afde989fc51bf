"""Where fine-tuning starts."""

import numpy as np
import pytest
from path_twins import LLAMA, random_decoder

from pit.config import ConfigError, override
from pit.recipes import recipe
from pit.stages import sft
from pit.stages.context import Run, needs_of


@pytest.mark.parametrize("init", ["random", "policy"])
def test_the_improver_starts_where_the_config_says_and_the_policy_at_random(monkeypatch, tmp_path, init):
    run = Run(tmp_path, override(recipe("tiny"), [f"sft_improver.init={init}"]))
    _, policy = trained = random_decoder(LLAMA)
    started = {}
    monkeypatch.setattr(Run, "trained", lambda self, name: {"sft-policy": trained}[name])
    monkeypatch.setattr(sft, "fit", lambda run, task, *, initial, profile_steps: started.update({task.stage: initial}))
    sft.run_sft(run, sft.POLICY)
    sft.run_sft(run, sft.IMPROVER)
    assert started["sft-policy"] is None
    assert needs_of("sft-policy", run.config) == ()
    if init == "random":
        assert started["sft-improver"] is None
        assert needs_of("sft-improver", run.config) == ()
        return
    assert needs_of("sft-improver", run.config) == ("sft-policy",)
    assert started["sft-improver"].keys() == policy.keys()
    for name, value in started["sft-improver"].items():
        np.testing.assert_array_equal(value, policy[name])
        assert value is not policy[name], "training consumes what it starts from"


def test_fine_tuning_starts_from_no_reward_model():
    with pytest.raises(ConfigError, match=r"^sft_improver\.init = 'quality': must be 'random' or 'policy' here"):
        override(recipe("tiny"), ["sft_improver.init=quality"])


def test_the_policy_is_the_first_model_and_starts_from_no_other():
    with pytest.raises(ConfigError, match=r"^sft_policy\.init = 'policy': must be 'random' here"):
        override(recipe("tiny"), ["sft_policy.init=policy"])
