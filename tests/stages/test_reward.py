"""The loss of a reward stage is the one that its config names."""

import jax.numpy as jnp
import pytest
from path_twins import random_reward_model

from pit.recipes import recipe
from pit.stages import reward

SCORE = jnp.array([[1.0, 0.0, 2.0, 1.0]])
"""r(w,l) = 2, r(w,w) = r(l,l) = 1, r(l,w) = 0: four differences of 1 and one of 2."""


@pytest.mark.parametrize(
    ("pairs", "expected"), [("five", 4 * 0.31326169 + 0.12692801), ("one", 0.12692801), ("antisymmetric", 0.31326169)]
)
def test_the_gap_model_ranks_the_pairs_that_its_config_names(monkeypatch, pairs, expected):
    monkeypatch.setattr(reward, "_scores", lambda *_: (SCORE, jnp.array([True])))
    graphdef, _ = random_reward_model(recipe("tiny").reward_model)
    total, metrics = reward.gap_loss(graphdef, pairs)({}, {})
    assert float(total.sum) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["accuracy/wl_over_ww"].sum) == 1
