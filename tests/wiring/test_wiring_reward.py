"""Joints of a reward function: what it is given in a stage, its weight, its stamp, and a stage that it stops."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from world import World, named, run_of, temporary_folder

from pit.config import digest, to_dict
from pit.rl.function import FunctionError, RewardError

SOURCE = """
import pathlib

calls = []


def score(prompts, references, answers, rows):
    calls.append((prompts, references, answers, rows))
    if len(calls) == 3 and (pathlib.Path(__file__).parent / "down").exists():
        raise ConnectionError("the service is down")
    return [len(answer) % 7 / 8 for answer in answers]
"""

RL = "rl-improver-0"


def written(source=SOURCE):
    path = temporary_folder() / "mine.py"
    path.write_text(source)
    return path


def settings(path, section="rl_improver_0", *more):
    return f"{section}.reward.function={path}:score", *(f"{section}.{setting}" for setting in more)


def calls():
    return sys.modules["pit_reward_mine"].calls


def lines(run, name):
    rows = (run.stage_folder(name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(row) for row in rows]
    return [{key: v for key, v in row.items() if not key.endswith(("wait_s", "per_s"))} for row in parsed]


def trained(run, name):
    return [line for line in lines(run, name) if "loss" in line]


def test_a_function_beside_the_model_gets_the_samples_of_each_step_and_its_weight_counts():
    more = ("reward.function_weight=0.5", "gap=symmetric", "evaluate_every=0", "reward.model_weight=2")
    world, run = World(), run_of(*settings(written(), "rl_improver_0", *more))
    world.work(run, RL)
    fold, template = run.fold("rl"), run.template
    asks = [ask for ask in world.asked(RL) if ask.n > 1]
    assert len(asks) == len(calls()) == 4  # three steps, and the held-out prompts at the end
    for ask, (prompts, references, answers, rows) in zip(asks[:3], calls(), strict=False):
        assert [row["row"] for row in rows] == list(np.repeat(ask.ids, ask.n))
        assert {row["fold"] for row in rows} == {"rl"}
        for place, (prompt, reference, row) in enumerate(zip(prompts, references, rows, strict=True)):
            x, better, worse = fold.row(row["row"])
            assert prompt == template.decode_prompt(x)[0].content == row["messages"][0]["content"]
            assert reference in (template.decode_answer(better), template.decode_answer(worse))
            tokens = ask.tokens[place // ask.n, place % ask.n]
            content = [int(t) for t in tokens if t and t != template.closings.eos]
            assert answers[place] == template.decode_answer(content)
    assert {row["fold"] for row in calls()[3][3]} == {"eval"}
    for line, (_, _, answers, _) in zip(trained(run, RL), calls(), strict=False):
        values = [len(answer) % 7 / 8 for answer in answers]
        assert line["rewards/function"] == pytest.approx(np.mean(values), abs=1e-6)
        total = 2 * line["rewards/model"] + 0.5 * line["rewards/function"]
        assert line["objective/reward"] == pytest.approx(total, abs=1e-5)
        assert 0 <= line["rewards/agreement"] <= 1


def test_the_policy_sees_no_references_and_alone_a_function_needs_no_reward_model():
    world, run = World(), run_of(*settings(written(), "rl_policy", "reward.model_weight=0"))
    stage = named("rl-policy")
    assert set(stage.inputs(run.config)) == {"start", "anchor"}
    assert not stage.maximises(run.config)
    world.work(run, "rl-policy")
    assert [scoring for scoring in world.scorings if scoring.where == "rl-policy"] == []
    assert all(references is None for _, references, _, _ in calls())
    for line, (_, _, answers, _) in zip(trained(run, "rl-policy"), calls(), strict=False):
        assert line["objective/reward"] == line["rewards/function"]
        assert line["objective/reward"] == pytest.approx(np.mean([len(a) % 7 / 8 for a in answers]), abs=1e-6)
        assert "rewards/model" not in line


def test_the_source_of_a_function_is_in_the_hash_of_its_stage_and_of_no_other():
    path = written()
    run, plain = run_of(*settings(path)), run_of()
    first = named(RL).hash(run)
    assert first != named(RL).hash(plain)
    assert named("rl-policy").hash(run) == named("rl-policy").hash(plain)
    after = named("rl-improver-1").hash(run)
    path.write_text(SOURCE + "# another text\n")
    assert named(RL).hash(run) != first
    assert named("rl-improver-1").hash(run) != after, "a stage after it depends on it"
    path.write_text(SOURCE)
    assert named(RL).hash(run) == first


LATER = ("reward", "clip", "drafts", "against", "own")
"""Fields of the section, and of those in it, that came after the first runs."""


def known_at_first(values):
    """Return the fields that the first runs had."""
    if not isinstance(values, dict):
        return values
    return {name: known_at_first(value) for name, value in values.items() if name not in LATER}


def test_a_config_without_later_fields_has_the_digest_of_one_that_knows_none():
    config = run_of().config.rl_improver_0
    known = known_at_first(to_dict(config))
    assert digest(config) == digest(known)
    weighed = dataclasses.replace(config.reward, model_weight=2.0)
    assert digest(dataclasses.replace(config, reward=weighed)) != digest(known)


def test_a_function_that_raises_stops_the_stage_with_a_checkpoint_from_which_it_resumes():
    more = ("steps=5", "checkpoint_every=0", "gap=symmetric", "curriculum.strategy=learnability", "curriculum.lag=2")
    more += ("curriculum.examples=6", "running_scale=true", "kl.target=0.9", "evaluate_every=0")
    path = written()
    whole, run = World(), run_of(*settings(path, "rl_improver_0", *more))
    whole.work(run, RL)
    assert sorted(whole.saved[RL]) == [5]
    down = path.parent / "down"
    down.touch()
    world, again = World(), run_of(*settings(path, "rl_improver_0", *more))
    message = r"it raised ConnectionError at mine.py:10 \(\"the service is down\"\), given \d+ answers, the first to "
    with pytest.raises(RewardError, match=message):
        world.work(again, RL)
    assert sorted(world.saved[RL]) == [2]
    assert not (again.stage_folder(RL) / "done.json").exists()
    down.unlink()
    world.work(again, RL)
    assert lines(again, RL) == lines(run, RL)
    assert world.saved[RL][5].controllers == whole.saved[RL][5].controllers


def test_a_function_that_changed_under_a_stage_is_refused_by_name():
    path = written()
    world, run = World(), run_of(*settings(path))
    world.work(run, RL)
    kept = run.stage_folder(RL) / "reward.py"
    assert world.saved[RL]
    assert kept.read_text() == SOURCE
    path.write_text(SOURCE + "# another text\n")
    message = f"{path} has changed since {RL} was trained with it ({kept} is its text of then)"
    with pytest.raises(FunctionError, match=re.escape(message)):
        world.work(run, RL)


def test_a_run_is_not_started_with_a_function_that_cannot_be_found():
    run = run_of("rl_policy.reward.function=absent.py:score")
    with pytest.raises(FunctionError, match=r"there is no file absent.py"):
        named("rl-policy").validate(run.config)
