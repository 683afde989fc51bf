"""The guides' diffs apply, and what they add works: a stage trains, an algorithm steps, a reward scores."""

import guide
import pytest

STAGE = """
import pit.pipeline, pit.plan.dry_run
from pathlib import Path
from pit.cli import main
from pit.config import override
from pit.recipes.demo import tiny
from pit.run.folder import Run
from pit.stages.prepare import prepare
from pit.stages.graph import stage_named

config = override(tiny(), ["data.synthetic_rows=150", "reward_quality.steps=2", "rl_policy.algorithm=grouped",
                           "rl_improver_0.gap=brief", "board.gold=none"])
run = Run(Path(sys.argv[2]), config)
run.save_config()
prepare(run)
names = [job.name for job in pit.pipeline.needs_of(config)]
assert names.index("reward-second-quality") == names.index("reward-judge") + 1
assert "reward-second-quality" in list(pit.plan.dry_run.tables(config, run.folder)[0].columns[0].cells)
main(["reward-second-quality", "--run", str(run.folder)])
assert stage_named("reward-second-quality").done(run)

# One draw of advantages of the new algorithm, found by its name.
import jax.numpy as jnp
from pit.rl.algorithms import algorithm_of
from pit.stages import rl
policy = rl.POLICY.fresh(run)
grouped = algorithm_of(config.rl_policy, "rl_policy")(policy.graphdef, config.rl_policy, 27)
advantage, _ = grouped.targets(jnp.array([[0.0, 2.0], [1.0, 1.0]], jnp.float32), jnp.float32(0.1))
assert advantage.tolist() == [[-1.0, 1.0], [0.0, 0.0]]

import numpy as np
from pit.data.tokens import Tokens
from pit.rl.records import Answers
from pit.rl.reward import model_reward
from pit.stages import reward
layout, model = run.layout(config.rl_improver_0.packing), reward.GAP.fresh(run)
x, ref, y = run.fold("rl").columns(range(3))
brief, plain = (model_reward(model, layout, form)(Answers(x, ref, [y])) for form in ("brief", "symmetric"))
np.testing.assert_allclose(brief[:, 0], plain[:, 0] - 0.02 * np.maximum(y.length - ref.length, 0), rtol=1e-5)
print("done")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pages = ("add-a-stage.md", "add-an-algorithm.md", "add-a-reward.md")
    return guide.copy_with(tmp_path_factory.mktemp("guides"), *pages)


def test_a_new_stage_algorithm_and_reward_work(folder, tmp_path):
    assert guide.run_in(folder, STAGE, tmp_path / "run").endswith("done\n")
