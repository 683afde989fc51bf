"""RLOO against clipped updates at equal wall time: what the policy's RL reaches on the synthetic task `describe`.

    python bench/clipped.py [--full]

The policy and R_P are trained once per seed. Each contender then takes as many steps as fit into the budget, by the
time of its compiled steps, under a learning-rate schedule of that length; steps of the contenders alternate, so that a
busy machine slows all of them. Rows of a microbatch are those of a rollout, divided by the number of minibatches.
Reported of held-out prompts: the shaped reward that all of them maximise, R_P's score, the KL to the anchor, and the
oracle's quality. A full run takes two idle cores about 20 minutes.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from _measure import keep, origin, results_file, size_options, spread
from pit.config import RunConfig, override
from pit.data.curriculum import Draws
from pit.evaluate import gold
from pit.recipes import recipe
from pit.rl.controllers import Controllers
from pit.rl.step import RlStep
from pit.run.folder import Run
from pit.run.session import Session
from pit.run.stage import Services
from pit.stages import reward, rl, sft
from pit.stages.prepare import prepare
from pit.stages.reinforced import make_step
from pit.train.update import TrainState, Update, make_optimizer

CLIPPED = ("rl_policy.algorithm=clipped",)
CONTENDERS: dict[str, tuple[str, ...]] = {
    "rloo": (),
    "clipped, 1 x 4": (*CLIPPED, "rl_policy.clip.epochs=1", "rl_policy.clip.minibatches=4"),
    "clipped, 2 x 2": (*CLIPPED, "rl_policy.clip.epochs=2", "rl_policy.clip.minibatches=2"),
    "clipped, 2 x 2, answers": (*CLIPPED, "rl_policy.clip.ratio=sequence"),
}
"""Settings of each contender; epochs x minibatches."""

SMALL = ("sft_policy.steps=20", "reward_quality.steps=20", "data.synthetic_rows=2000")
TIMED = 2
"""Steps after the first, which compiles, by which a contender's time per step is known."""


class Contender:
    """A policy in training: the step of its config, its state, and the seconds that it has used.

    Args:
        run: run with its settings, whose policy and R_P are trained.
        budget_s: seconds of its compiled steps.
    """

    def __init__(self, run: Run, budget_s: float) -> None:
        self._run, self._models, self.seconds = run, rl.POLICY.models(run), 0.0
        self.step: RlStep = make_step(Session(run, rl.POLICY), self._models)
        self._start(1)
        times = []
        for _ in range(1 + TIMED):
            before = self.seconds
            self.advance()
            times.append(self.seconds - before)
        self.steps = max(1, round(budget_s / float(np.mean(times[1:]))))
        self._start(self.steps)

    def _start(self, steps: int) -> None:
        """Begin anew, with a schedule of so many steps."""
        settings, algorithm = self._run.config.rl_policy, self.step.algorithm
        self._update = Update(algorithm.loss, make_optimizer(settings.optimizer, steps * algorithm.updates))
        self.state: TrainState = self._update.start(self._models["start"].copy().params)
        self._control, self.seconds, self.taken, self.updates = Controllers(settings.beta), 0.0, 0, 0.0
        order = np.random.default_rng(self._run.seed.of("bench").number).permutation(len(self.step.fold))
        self._order = np.resize(order, steps * settings.prompts + (1 + TIMED) * settings.prompts)

    def advance(self) -> None:
        """Take a step."""
        prompts, begin = self._run.config.rl_policy.prompts, time.perf_counter()
        ids = self._order[self.taken * prompts : (self.taken + 1) * prompts]
        draws = Draws(self.taken, ids, np.zeros(prompts, np.uint8))
        self.state, totals, scored, control = self.step(
            self.state, draws, self._control, lambda state, arrays, _: self._update(state, arrays)
        )
        float(totals["loss"].sum)
        self._control = control.adapted(self._run.config.rl_policy, scored.values["objective/kl_penalty"])
        self.taken += 1
        self.updates += scored.values.get("policy/updates", 1.0)
        self.seconds += time.perf_counter() - begin

    def figures(self) -> dict[str, float]:
        """Return what held-out prompts show, with the cost of it."""
        fold = self._run.fold("eval")
        ids = np.arange(min(self._run.config.rl_policy.evaluate_prompts, len(fold)))
        draws, seed = Draws(self.taken, ids, np.zeros(len(ids), np.uint8)), self._run.seed.of("bench", "held-out")
        scored, _ = self.step.collect(self.state.params, fold, draws, self._control, seed, adapt=False)
        names = {"shaped": "objective/rlhf_reward", "score": "objective/reward", "kl_nats": "objective/kl"}
        values = {name: scored.values[metric] for name, metric in names.items()}
        quality = gold.oracle_of(self._run)
        of_all = [quality(scored.rollout.prompts.inputs, column).mean() for column in scored.rollout.outputs]
        values["quality"] = float(np.mean(of_all))
        return {**values, "seconds": self.seconds, "steps": self.taken, "updates": self.updates}


def packed(config: RunConfig) -> RunConfig:
    """Return the config with microbatches of a minibatch's size: each would else be padded to that of a rollout."""
    section = config.rl_policy
    parts = section.clip.minibatches if section.algorithm == "clipped" else 1
    return override(config, [f"rl_policy.packing.rows={max(1, section.packing.rows // parts)}"])


def measure(name: str, settings: tuple[str, ...], seed: int, budget_s: float, folder: Path) -> dict[str, Any]:
    """Return the figures of all contenders for one seed."""
    shared = (f"seed={seed}", *settings)
    base = Run(folder, override(recipe(name), shared))
    base.save_config()
    prepare(base)
    for stage in (sft.POLICY, reward.QUALITY):
        stage.work(base, Services())
    runs = {name: Run(folder, packed(override(base.config, chosen))) for name, chosen in CONTENDERS.items()}
    contenders = {name: Contender(run, budget_s) for name, run in runs.items()}
    for turn in range(max(each.steps for each in contenders.values())):
        for each in contenders.values():
            if turn < each.steps:
                each.advance()
    return {name: each.figures() for name, each in contenders.items()}


def main() -> None:
    """Measure and report every contender over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="fresh seeds [1; with --full 3]")
    parser.add_argument("--budget", type=float, help="seconds of steps per contender [3; with --full 60]")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    size_options(parser, "clipped")
    options = parser.parse_args()
    name, settings = ("demo", ()) if options.full else ("tiny", SMALL)
    seeds, budget_s = options.seeds or (3 if options.full else 1), options.budget or (60.0 if options.full else 3.0)
    rows = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, (*settings, *options.settings), seed, budget_s, Path(folder)))
    fields = rows[0]["rloo"]
    table = {each: {f: spread(np.array([row[each][f] for row in rows])) for f in fields} for each in CONTENDERS}
    found = {"recipe": name, "settings": [*settings, *options.settings], "budget_s": budget_s, "contenders": table}
    shown = ", ".join(f"{each} {values['shaped']['median']:+.3g}" for each, values in table.items())
    summary = f"shaped reward after {budget_s:g} s of steps ({name}, {seeds} seeds): {shown}"
    keep(results_file(options, "clipped"), {"clipped": {**origin(0, seeds), **found}}, summary)


if __name__ == "__main__":
    main()
