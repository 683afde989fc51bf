"""The study of instruct: which model answers for each method, what it reads, and what is spent."""

import importlib
from itertools import groupby
from pathlib import Path

import pytest
from world import World, run_of

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def study(monkeypatch):
    """The script, which is in no package."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("study_instruct")


def contains(prefix, part):
    """Return whether the tokens of a part stand in a prefix, one after the other."""
    return any(prefix[at : at + len(part)] == part for at in range(len(prefix)))


def test_each_method_has_its_own_models_and_references(study):
    world = World()
    run = run_of("rlhf=again", "improve.gap=symmetric", "improve.iterations=2", "improve.batch=64")
    prompts = run.fold("eval").columns(range(3))[0]
    with world.watched("study"):
        answered = study.answers_of(run, prompts)
    asks = world.asked("study")
    assert [(name, len(list(group))) for name, group in groupby(ask.model for ask in asks)] == [
        ("rl-policy", 1),  # y0
        ("rl-improver-1", 4),  # two passes, plain and accepted
        ("rl-policy", 2),  # best of n and resampling
        ("rl-improver-1", 2),  # another prompt's answer, and an empty one
        ("sft-improver", 2),
        ("sft-policy", 1),
        ("rl-policy-again", 3),  # its y0, and further draws
        ("fresh", 5),  # the untrained model: y0, two passes over it, two over M_P^RL's
    ]
    columns = set(study.methods_of(2).values()) - {"search", "chosen_best_of_n", "recombination"}
    assert columns <= set(answered.outputs)
    raw, first = (answered.outputs[name].rows() for name in ("untrained", "y0"))
    for place, references in ((1, first), (7, [*first[1:], first[0]]), (9, first), (16, raw), (18, first)):
        assert all(map(contains, asks[place].prefixes, references))
    # As many answers for every rival: three, or three less the draw that both begin with.
    lengths = {name: answered.sampled[name] for name in ("y0", "pit_stop_2", "best_of_3", "again_best_of_3")}
    assert lengths["y0"] < min(lengths["pit_stop_2"], lengths["best_of_3"], lengths["again_best_of_3"])
    assert len({ask.seed for ask in asks}) == len(asks)
