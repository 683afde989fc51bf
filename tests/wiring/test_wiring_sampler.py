"""The joint of the sampler: every job asks the interface alone, so that a second sampler can draw for all of them."""

import io
from unittest import mock

import numpy as np
from sampler_double import Elsewhere
from test_wiring_search import sum_of_tokens
from world import World, run_of

from pit.evaluate import measure, splits
from pit.rollout.protocol import SamplerProtocol
from pit.run.folder import Run
from pit.serve.lines import improve_lines
from pit.stages import refresh
from pit.stages.graph import stages_of

SETTINGS = ("references=own", "refresh.prompts=8", "evaluate.search_answers=2", "evaluate.search_prompts=4")
ASKED = {
    "rl-policy": {"rl-policy"},
    "rl-improver-0": {"rl-improver-0"},
    "rl-improver-1": {"rl-improver-1", "rl-policy"},
    "rl-improver-2": {"rl-improver-2", "rl-policy", "rl-improver-1"},
    "refresh-pairs": {"rl-policy", "rl-improver-0"},
    "evaluate": {"sft-policy", "rl-policy", "rl-improver-2"},
    "search": {"rl-policy", "rl-improver-2"},
    "improve": {"rl-policy", "rl-improver-2"},
}
"""Stages whose weights each job draws with."""


def longer(inputs, first, second):
    """Prefer the longer answer."""
    return np.sign(np.subtract([len(y) for y in first], [len(y) for y in second]))


class Only:
    """The second sampler behind the two calls and the one property of the interface; nothing else can be asked."""

    def __init__(self, engine):
        self._engine = engine
        self.samples, self.answers, self.capacity = engine.samples, engine.answers, engine.capacity


def test_every_job_of_a_run_draws_with_a_second_sampler():
    world, run = World(), run_of(*SETTINGS)
    engine = Elsewhere(run.template.closings, run.template.capacity, (200, 300))
    sampler, handed = Only(engine), {}
    assert isinstance(sampler, SamplerProtocol)

    def taken(name):
        handed[name] = {version.partition("@")[0] for version in engine.handed}
        engine.handed.clear()

    with mock.patch.object(Run, "sampler", return_value=sampler):
        for stage in stages_of(run.config):
            if stage.name == refresh.QUALITY.name:
                with world.watched("refresh-pairs"):
                    refresh.make_pairs(run, longer)
                taken("refresh-pairs")
            world.work(run, stage.name)
            taken(stage.name)
        with world.watched("evaluate"):
            measure.answer_all(run)
            taken("evaluate")
            with mock.patch.object(splits, "best_gold", return_value=(sum_of_tokens, "oracle")):
                splits.search_of(run)
            taken("search")
            improve_lines(run, io.BytesIO(b'{"prompt": "red lamp?"}'), io.StringIO(), {"iterations": 2}, seed=0)
            taken("improve")
    assert {name: models for name, models in handed.items() if models} == ASKED
    assert world.asks == [], "nothing was drawn by PIT's own sampler"
