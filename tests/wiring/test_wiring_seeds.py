"""Joints of random numbers: a ledger of every seed that a run of all stages, its evaluation and `pit improve` use."""

import collections
import itertools
import json
from unittest import mock

import numpy as np
from world import STAGES, STEPS, World, named, remembered, run_of

from pit.data import _core
from pit.data import loader as loaders
from pit.data.curriculum import DrawLoader
from pit.evaluate import gold, measure
from pit.rl import clipped, curriculum, references
from pit.serve.lines import improve_lines
from pit.stages import refresh

SETTINGS = (
    "references=own",
    "refresh.prompts=8",
    "rl_policy.algorithm=clipped",
    "rl_improver_0.sources.policy=1",
    "rl_improver_1.passes.most=2",
    "rl_improver_2.passes.least=1",
    "rl_improver_2.passes.most=2",
    "evaluate.prompts=6",
    "improve.iterations=2",
    *[f"{name}.evaluate_every=1" for name in ("rl_policy", "rl_improver_0", "rl_improver_1", "rl_improver_2")],
)
"""Everything that draws: minibatches, references of the policy, passes over them, refreshed models, evaluations."""


class Ledger(World):
    """A world that also writes down the seeds of orders, draws and numbers of passes."""

    def noted(self, kind, number):
        self.numbers.append((self.where, kind, number))

    def watching(self):
        staged, planner = curriculum.Staged, loaders.make_planner
        permutation, passes, minibatches = _core.Permutation, references.passes_of, clipped.order_of

        def draws(weights, *, seed, examples):
            self.noted("draws", seed)
            return staged(weights, seed=seed, examples=examples)

        def order(*arguments, seed, **options):
            self.noted("order", seed)
            return planner(*arguments, seed=seed, **options)

        def mixed(size, seed):
            self.noted("order of the mix", seed)
            return permutation(size, seed)

        def counted(ids, limits, seed):
            self.noted("passes", seed.number)
            return passes(ids, limits, seed)

        def shuffled(count, seed):
            self.noted("order of minibatches", seed.number)
            return minibatches(count, seed)

        return [
            mock.patch.object(clipped, "order_of", shuffled),
            mock.patch.object(curriculum, "Staged", draws),
            mock.patch.object(loaders, "make_planner", order),
            mock.patch.object(refresh._core, "Permutation", mixed),
            mock.patch.object(references, "passes_of", counted),
        ]


def ledger(*names):
    """Return the ledger of some stages, in which "evaluate" and "improve" are those commands; widely: a search."""
    world, run = Ledger(), run_of(*SETTINGS)
    patches = world.watching()
    for patch in patches:
        patch.start()
    try:
        for name in names:
            record(world, run, name)
    finally:
        for patch in patches:
            patch.stop()
    return world


def record(world, run, name):
    if name in {stage.name for stage in STAGES}:
        world.work(run, name)
        return
    with world.watched(name):
        if name == "refresh-pairs":
            refresh.make_pairs(run, gold.labeller_of(run))
        elif name == "evaluate":
            measure.answer_all(run)
        else:
            source = run.folder / "prompts.jsonl"
            source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("one", "two", "three")))
            changes = {"draws": 2, "width": 2, "chains": "each", "restart": 1} if name == "improve widely" else {}
            with source.open("rb") as lines, (run.folder / "improved.jsonl").open("w") as sink:
                improve_lines(run, lines, sink, changes, seed=len(changes))


RL = ("rl-policy", "rl-improver-0", "rl-improver-1", "rl-improver-2")
SUPERVISED = ("sft-policy", "sft-improver", "reward-quality", "reward-gap", "reward-judge")
REFRESHED = ("refresh-pairs", "refresh-quality", "refresh-gap")
INFERENCE = ("evaluate", "improve", "improve widely")


def whole():
    """Return the ledger of everything."""
    return remembered("ledger", lambda: ledger(*SUPERVISED, *RL, *REFRESHED, *INFERENCE))


def uses(world):
    """Return the calls of the sampler in which each (seed, id, number of the sample) was used."""
    result = collections.defaultdict(list)
    for number, ask in enumerate(world.asks):
        # Equal requests of one call are computed once.
        for request in dict.fromkeys(ask.ids):
            for sample in range(ask.n):
                result[ask.seed, request, sample].append(number)
    return result


def held_out_calls(world, name):
    """Return the calls of held-out evaluations of an RL stage: every second step of the loop, as each is evaluated."""
    settings = named(name).settings(run_of(*SETTINGS).config)
    calls = [i for i, ask in enumerate(world.asks) if ask.where == name]
    turns, turn = [], []
    for i in calls:
        turn.append(i)
        if world.asks[i].n == settings.samples:
            turns.append(turn)
            turn = []
    assert len(turns) == 2 * settings.steps
    return turns[1::2]


def repeats(world):
    return {key: calls for key, calls in uses(world).items() if len(calls) > 1}


def allowed(world, names):
    """Return the groups of calls that share random numbers on purpose: the same part of every held-out evaluation."""
    groups = []
    for name in names:
        for part in itertools.zip_longest(*held_out_calls(world, name)):
            groups.append({i for i in part if i is not None})
    return groups


def check(world, names):
    """Assert that nothing but held-out evaluations repeats random numbers, and that those do."""
    groups, shared = allowed(world, names), repeats(world)
    for key, calls in shared.items():
        assert any(set(calls) <= group for group in groups), (key, [world.asks[i][:5] for i in calls])
    repeated = {i for calls in shared.values() for i in calls}
    assert repeated == {i for group in groups if len(group) > 1 for i in group}


def test_no_random_number_of_a_sample_is_used_twice():
    world = whole()
    check(world, RL)
    assert {ask.where for ask in world.asks} == {*RL, "refresh-pairs", *INFERENCE}
    for ask in world.asks:
        assert len(set(ask.ids)) == len(ask.ids)


def test_steps_references_and_samples_of_a_stage_have_seeds_of_their_own():
    """The same for one stage alone, which is cheaper: references of the policy, passes over them, samples, steps."""
    world = ledger("rl-improver-2")
    check(world, ["rl-improver-2"])
    held_out = {i for turn in held_out_calls(world, "rl-improver-2") for i in turn}
    training = [ask for i, ask in enumerate(world.asks) if i not in held_out]
    # No example is drawn twice here, but in the next epoch it will be.
    assert len({ask.seed for ask in training}) == len(training) >= 3 * STEPS
    kinds = {(ask.model, ask.n) for ask in world.asks}
    assert kinds == {("rl-policy", 1), ("rl-improver-1", 1), ("rl-improver-1", 2)}


def test_two_stages_share_no_seed():
    world = ledger("rl-policy", "rl-improver-0", "rl-improver-1")
    by_stage = collections.defaultdict(set)
    for ask in world.asks:
        by_stage[ask.where].add(ask.seed)
    for where, _, number in world.numbers:
        by_stage[where].add(number)
    for one, other in itertools.combinations(by_stage.values(), 2):
        assert not one & other
    assert len(by_stage) == 3


def test_refreshing_samples_every_answer_with_numbers_of_its_own():
    world = ledger("refresh-pairs")
    assert not repeats(world)
    assert [ask.model for ask in world.asks] == ["rl-policy", "rl-policy", "rl-improver-0"]
    assert all(ask.ids == list(range(8)) for ask in world.asks)


def test_evaluation_and_improvement_use_no_number_twice():
    world = ledger(*INFERENCE)
    assert not repeats(world)
    assert len({ask.seed for ask in world.asks}) == len(world.asks)
    assert {ask.where for ask in world.asks} == set(INFERENCE)


def test_weights_orders_and_draws_have_seeds_of_their_own():
    world = whole()
    numbers = collections.defaultdict(set)
    for where, kind, number in world.numbers:
        numbers[number].add((where, kind))
    for number, users in numbers.items():
        assert len(users) == 1, (number, users)
        assert number not in {ask.seed for ask in world.asks}
    kinds = collections.defaultdict(set)
    for where, kind, _ in world.numbers:
        kinds[kind].add(where)
    assert kinds["weights"] == set(SUPERVISED)
    assert kinds["order"] == set(SUPERVISED)
    assert kinds["draws"] == set(RL)
    assert kinds["order of the mix"] == {"refresh-quality", "refresh-gap"}
    assert kinds["order of minibatches"] == {"rl-policy"}
    assert kinds["passes"] == {"rl-improver-1", "rl-improver-2"}


def test_supervised_stages_share_no_seed():
    world = ledger("sft-policy", "sft-improver", "reward-gap")
    numbers = [number for *_, number in world.numbers]
    assert len(set(numbers)) == len(numbers) == 6


def test_the_seed_of_the_run_reaches_every_random_number():
    """Another seed of the run, other numbers everywhere; the same one, the same."""

    def numbers(seed):
        world, run = Ledger(), run_of(*SETTINGS, f"seed={seed}")
        patches = world.watching()
        for patch in patches:
            patch.start()
        try:
            for name in ("reward-judge", "rl-improver-1", "evaluate"):
                record(world, run, name)
        finally:
            for patch in patches:
                patch.stop()
        return [ask.seed for ask in world.asks], [number for *_, number in world.numbers]

    first, again, other = numbers(0), numbers(0), numbers(1)
    assert first == again
    assert not set(itertools.chain(*first)) & set(itertools.chain(*other))


def test_draws_of_an_epoch_are_those_of_the_seed_of_the_stage():
    """Two stages draw their prompts in other orders."""
    drawn = {}
    real = DrawLoader.__next__

    def noted(loader):
        draws = real(loader)
        drawn.setdefault(world.where, []).append(draws.ids)
        return draws

    world, run = World(), run_of()
    with mock.patch.object(DrawLoader, "__next__", noted):
        for name in ("rl-improver-0", "rl-improver-1"):
            world.work(run, name)
    one, other = (np.concatenate(drawn[name]) for name in ("rl-improver-0", "rl-improver-1"))
    assert len(one) == len(other) == len(set(one.tolist()))
    assert not np.array_equal(one, other)
