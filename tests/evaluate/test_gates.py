"""The gates before RL: which pairs they ask about, which floor holds for which, and what warns or stops."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.config import EvaluateConfig, override
from pit.data.synthetic import generate_prompts
from pit.data.synthetic.describe import clean_answer, oracle, progress
from pit.data.tokens import Tokens
from pit.evaluate import gates, sensitivity
from pit.evaluate.gates import GATE, BlindRewardError, failed, floor_of, require_seeing
from pit.evaluate.gold import best_gold, gold_of
from pit.evaluate.schema import SensitivityRow
from pit.evaluate.sensitivity import HELD_OUT, PROGRESS, corrupted_pairs, held_out_pairs, progress_pairs
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.recipes.demo import tiny
from pit.rollout.sample import Samples
from pit.rollout.score import ModelScorer
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.seeds import Seed
from pit.stages.prepare import prepare
from pit.train.log import PROGRESS_VARIABLE


def row(model, aspect, accuracy):
    return SensitivityRow(model, aspect, accuracy, accuracy - 0.05, accuracy + 0.05, 100)


ROWS = [
    row("R_P", HELD_OUT, 0.6),
    row("R_PIT symmetric", HELD_OUT, 0.5),
    row("R_P", f"{PROGRESS}wrong values 2 to 1", 0.75),
    row("R_PIT symmetric", f"{PROGRESS}wrong values 2 to 1", 0.85),
    row("R_P", "order", 0.9),
    row("R_PIT centred", "order", 0.1),
]
FLOORS = EvaluateConfig(pairs_floor=0.55, progress_floor=0.8, sensitivity_floor=0.9)
LINES = [
    "evaluate.pairs_floor = 0.55: but R_PIT symmetric held-out pairs 0.50",
    "evaluate.progress_floor = 0.8: but R_P progress, wrong values 2 to 1 0.75",
]


def test_each_aspect_has_its_floor_and_the_centred_gap_none():
    assert failed(ROWS, FLOORS) == LINES
    assert failed(ROWS, dataclasses.replace(FLOORS, sensitivity_floor=0.95)) == [
        *LINES,
        "evaluate.sensitivity_floor = 0.95: but R_P order 0.90",
    ]
    assert failed(ROWS, EvaluateConfig(pairs_floor=0.0, progress_floor=0.0, sensitivity_floor=0.0)) == []


def test_gates_warn_by_default_and_stop_if_asked():
    command = GATE.command(Run(Path("runs/x"), tiny()))
    assert command == "pit gate --run runs/x"
    assert require_seeing(ROWS, FLOORS, command) == LINES
    with pytest.raises(BlindRewardError) as caught:
        require_seeing(ROWS, dataclasses.replace(FLOORS, gate="stop"), command)
    said = str(caught.value)
    assert f"{LINES[0]}; {LINES[1]}; " in said
    for word in ("reward_quality.steps", "reward_gap.steps", "--set evaluate.gate=warn", command):
        assert word in said
    assert require_seeing(ROWS[:1], dataclasses.replace(FLOORS, gate="stop"), "") == []


@given(number=st.integers(0, 50), seed=st.integers(0, 10**6))
def test_each_answer_on_the_way_is_worse_than_the_one_before(number, seed):
    prompt = list(generate_prompts(number + 1, 0))[number]
    clean = clean_answer(prompt)
    ladder = progress(prompt, clean, random.Random(seed))
    assert ladder[0] == clean
    asked = len(clean.split(","))
    assert len(ladder) == asked + 1
    right = [oracle.aspects(prompt, answer)["correct"] for answer in ladder]
    np.testing.assert_allclose(right, [1 - wrong / asked for wrong in range(asked + 1)])
    assert all(oracle.aspects(prompt, answer)["clean"] == 1 for answer in ladder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic_rows=300))
    made = Run(tmp_path_factory.mktemp("run"), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROGRESS_VARIABLE, "json")
        prepare(made)
    return made


class Blindly(ModelScorer):
    """A model that counts right values, and no more: it stands for both kinds."""

    def __init__(self, run):
        self._run = run

    def _right(self, x, y):
        template = self._run.template
        return oracle.aspects(template.decode_prompt(x)[0].content, template.decode_answer(y))["correct"]

    def quality(self, inputs, outputs, packed=None):
        return np.array([[self._right(x, y) for y in ys] for x, *ys in zip(inputs, *outputs, strict=True)], np.float32)

    def gap(self, inputs, references, outputs, form, packed=None):
        scores = self.quality(inputs, [references, *outputs])
        return scores[:, 1:] - scores[:, :1]


def test_gates_ask_about_held_out_pairs_single_faults_and_progress(run, monkeypatch):
    monkeypatch.setattr(Stage, "load", lambda stage, run: stage.name)
    monkeypatch.setattr(sensitivity, "ModelScorer", lambda name, layout: Blindly(run))
    rows = {(each.model, each.aspect): each for each in gates.gate_rows(run)}
    assert {model for model, _ in rows} == {"R_P", "R_PIT symmetric", "R_PIT centred"}
    steps = [aspect for model, aspect in rows if model == "R_P" and aspect.startswith(PROGRESS)]
    assert steps == [f"{PROGRESS}wrong values {wrong + 1} to {wrong}" for wrong in range(len(steps))]
    assert len(steps) in (3, 4)
    for model in ("R_P", "R_PIT symmetric"):
        assert all(rows[model, aspect].accuracy == 1 for aspect in [*steps, "correct", "coverage"])
        assert all(rows[model, aspect].accuracy == 0 for aspect in ("order", "courtesy", "brevity"))
    assert rows["R_P", HELD_OUT].n == len(held_out_pairs(run)[HELD_OUT].inputs) == 8
    assert rows["R_P", steps[0]].n == 8
    other = Run(run.folder, dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, path="x")))
    assert {each.aspect for each in gates.gate_rows(other)} == {HELD_OUT}


def test_pairs_of_progress_are_the_same_each_time(run):
    assert progress_pairs(run) == progress_pairs(run)


def test_the_gates_of_the_relay_ask_for_its_own_faults_and_ladder(tmp_path, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")
    config = override(tiny(), ["data.task=relay", "data.synthetic_rows=300", "windows.input=36"])
    relay = Run(tmp_path, config)
    prepare(relay)
    pairs = corrupted_pairs(relay) | progress_pairs(relay)
    ladder = [f"{PROGRESS}passes lost {lost + 1} to {lost}" for lost in range(9)]
    faults = ["wrong", "lost", "swapped", "repetition", "clean", "courtesy", "brevity", "stutter"]
    assert sorted(pairs) == sorted([*faults, *ladder])
    assert {floor_of(aspect, config.evaluate)[0] for aspect in ladder} == {"progress_floor"}
    quality = gold_of(relay)
    for inputs, better, worse in pairs.values():
        assert len(inputs) == 8
        assert np.all(quality(inputs, better) > quality(inputs, worse))
    np.testing.assert_allclose(quality(*pairs[ladder[2]][:2]), 1 - 0.66 * 2 / 10)


def test_samples_are_ordered_by_the_gold_and_ties_are_left_out(run, monkeypatch):
    """The gold is the sum of an answer's tokens; three of every four prompts' samples are made alike."""

    class Spoken:
        """A sampler that has what its interface has, and nothing else."""

        capacity = run.template.capacity

        def samples(self, model, ids, inputs, references=None, *, n, strategy, seed):
            assert (model, references, n, self.capacity, seed) == (policy, None, 2, 27, Seed((0,)).number)
            answers = [([g + 1], [g + 1] if g % 4 else [2 * g + 9]) for g in ids]
            token = np.array(answers, np.int32)
            length, nothing = np.ones(token.shape[:2], np.int32), np.zeros(token.shape, np.float32)
            return Samples(token, length, np.zeros(token.shape[:2], bool), nothing, nothing, 1.0)

    policy = Model.build(Decoder, run.config.policy, run.tokenizer.vocab_size, 0)
    monkeypatch.setattr(run, "sampler", lambda rollout: Spoken())
    pairs = sensitivity.sampled_pairs(
        run,
        policy,
        lambda xs, ys: np.array([sum(y) for y in Tokens.of(ys).rows()], float),
        [[g] for g in range(8)],
        seed=Seed((0,)),
    )
    assert pairs == ([[0], [4]], [[9], [17]], [[1], [5]])


def test_the_best_gold_is_the_oracle_where_there_is_one(run):
    gold, name = best_gold(run)
    assert name == "oracle"
    content = [int(t) for t in run.fold("eval").row(0)[0]]
    clean = run.template.encode_answer(clean_answer(run.template.decode_prompt(content)[0].content))
    assert gold([content], [clean]).tolist() == [1.0]
