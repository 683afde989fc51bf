"""Joints of several updates per rollout: trees, log-probs and order of each, and the step that they count as."""

import itertools

import numpy as np
import world as world_of
from test_wiring_resume import lines, resumed
from world import STEPS, World, named, remembered, run_of

NAME = "rl-policy"
SETTINGS = (
    f"{NAME.replace('-', '_')}.algorithm=clipped",
    "rl_policy.clip.epochs=3",
    "rl_policy.clip.minibatches=4",
    "rl_policy.evaluate_every=1",
)
EPOCHS, PARTS = 3, 4


class Read(World):
    """A world in which every reading gives every token a log-prob of its own; `readings` keeps them."""

    def __init__(self):
        super().__init__()
        self.readings = []

    def read(self, reader, params, trees, n):
        made = super().read(reader, params, trees, n)
        own = -np.arange(1, made.logp.size + 1, dtype=np.float32).reshape(made.logp.shape) / 4096
        logp = np.where(made.logp != 0, own - len(self.readings), 0).astype(np.float32)
        self.readings.append(logp)
        return made._replace(logp=logp)


def worked():
    """Return the world of the stage."""

    def make():
        world, run = Read(), run_of(*SETTINGS)
        world.work(run, NAME)
        return world, run

    return remembered("clipped", make)


def updates():
    """Return the updates of each step: microbatches, and the rows of the fold in their slots."""
    world, _ = worked()
    groups, count = world.of(NAME), EPOCHS * PARTS
    assert len(groups) == STEPS * count
    return [groups[step * count : (step + 1) * count] for step in range(STEPS)]


def rows_of(group):
    return sorted(row for examples in group.examples for row in examples if row >= 0)


def test_every_epoch_takes_every_tree_once_in_an_order_of_its_own():
    world, run = worked()
    prompts = named(NAME).settings(run.config).prompts
    training = [ask for ask in world.asks if ask.n > 1][::2]
    orders = []
    for groups, ask in zip(updates(), training, strict=True):
        assert len(ask.ids) == prompts
        for epoch in range(EPOCHS):
            parts = [rows_of(group) for group in groups[epoch * PARTS : (epoch + 1) * PARTS]]
            assert all(len(part) == prompts // PARTS for part in parts)
            assert sorted(itertools.chain(*parts)) == sorted(ask.ids)
            orders.append([ask.ids.index(part[0]) for part in parts])
    assert len(set(map(tuple, orders))) > EPOCHS


def test_every_update_compares_with_the_log_probs_that_were_read_before_the_first():
    world, _ = worked()
    # Every step reads its rollout once; the held-out samples after it are another reading.
    assert len(world.readings) == 2 * STEPS
    for step, groups in enumerate(updates()):
        reading, ids = world.readings[2 * step], [ask for ask in world.asks if ask.n > 1][2 * step].ids
        for group in groups:
            for arrays, examples in zip(group.arrays, group.examples, strict=True):
                for slot, row in enumerate(examples):
                    expected = reading[ids.index(row)] if row >= 0 else 0 * reading[0]
                    np.testing.assert_array_equal(arrays["rollout_logp"][slot], expected)


def test_all_updates_of_a_rollout_are_one_step():
    world, run = worked()
    assert sorted(world.saved[NAME]) == list(range(1, STEPS + 1))
    trained = [line for line in lines(run, NAME) if "policy/updates" in line]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert {line["policy/updates"] for line in trained} == {EPOCHS * PARTS}


def test_a_stage_resumes_with_the_same_updates_in_the_same_order():
    world, run = world_of.worked(NAME, *SETTINGS)
    again, other = resumed(NAME, 1, *SETTINGS)
    groups = world.of(NAME)[EPOCHS * PARTS :]
    assert len(again.of(NAME)) == len(groups)
    for one, two in zip(groups, again.of(NAME), strict=True):
        assert one.examples == two.examples
        for a, b in zip(one.arrays, two.arrays, strict=True):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert lines(other, NAME) == lines(run, NAME)
