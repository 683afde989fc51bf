"""Refused steps: the state survives bit for bit, the tree at fault is found, and too many in a row end the stage."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import path_twins as twins
import pytest

from pit.config import OptimizerConfig
from pit.data.packing import Layout, pack
from pit.data.template import gap, improver_sft
from pit.losses.total import Total
from pit.stages.reward import gap_loss
from pit.train.guard import DivergedError, Guard, only, pieces_of
from pit.train.update import REFUSED, Update, make_optimizer

POISON = 23
"""A token whose presence makes the loss what a test asks for."""

ROWS = Layout(closings=twins.CLOSINGS, pad=twins.PAD, row_length=40, rows=6, trees=6)
COLUMNS = [[[4], [5, 6], [7], [8, 9]], [[10], [11], [12, 13], []], [[14], [15], [16], [17, 18]]]


def poisoned(tree):
    """The columns with the poison in one tree."""
    return [
        [[*row, POISON] if g == tree and c == 1 else row for g, row in enumerate(column)]
        for c, column in enumerate(COLUMNS)
    ]


def toy_loss(value):
    """Sum over the weighted tokens of (w . one-hot)^2, times `value` at the poison."""

    def loss(params, batch):
        counts = batch["loss_weight"] > 0
        factor = jnp.where(counts & (batch["token"] == POISON), jnp.float32(value), jnp.float32(1))
        each = jnp.where(counts, factor * params["w"][batch["token"]] ** 2, jnp.float32(0))
        return Total(jnp.sum(each), jnp.sum(counts.astype(jnp.float32))), {"seen": Total(jnp.sum(each), jnp.float32(1))}

    return loss


def packed(columns, topology=None):
    (batch,) = pack(columns, topology or improver_sft(), ROWS)
    return twins.arrays_of(batch), batch.example_id


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_refused_step_keeps_every_bit_but_its_number(value):
    update = Update(toy_loss(value), make_optimizer(OptimizerConfig(warmup_steps=2, weight_decay=0.1), 9))
    good, _ = packed(COLUMNS)
    bad, _ = packed(poisoned(2))
    state = update.start({"w": jnp.linspace(0.1, 1, twins.VOCAB)})
    state, metrics = update(state, [good])
    assert float(metrics[REFUSED].sum) == 0
    before = jax.tree.map(np.array, state)
    state, metrics = update(state, [good, bad])
    assert int(state.step) == 2
    for one, two in zip(jax.tree.leaves(state[1:]), jax.tree.leaves(before[1:]), strict=True):
        np.testing.assert_array_equal(one, two)
    assert {name: tuple(map(float, total)) for name, total in metrics.items() if name != REFUSED} == dict.fromkeys(
        ("loss", "grad_norm", "seen"), (0.0, 0.0)
    )
    assert tuple(map(float, metrics[REFUSED])) == (1.0, 1.0)
    # And it goes on as if the refused step had not been there.
    once, _ = update(state, [good])
    again, _ = update(jax.tree.map(jnp.asarray, before), [good])
    for one, two in zip(jax.tree.leaves(once[1:]), jax.tree.leaves(again[1:]), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_gradient_that_is_not_finite_is_refused_though_the_loss_is():
    def loss(params, batch):
        return Total(jnp.sum(jnp.sqrt(params["w"] * batch["x"])), jnp.float32(1)), {}

    update = Update(loss, optax.sgd(0.1))
    state, metrics = update(update.start({"w": jnp.ones(2)}), [{"x": jnp.array([1.0, 0.0])}])
    assert float(metrics[REFUSED].sum) == 1
    np.testing.assert_array_equal(state.params["w"], [1, 1])


def test_the_tree_at_fault_is_on_disk_and_the_run_of_refusals_ends(tmp_path):
    update = Update(toy_loss(np.nan), optax.sgd(0.1))
    guard = Guard(update, tmp_path, "sft-policy", limit=2)
    (good, ids), (bad, _) = packed(COLUMNS), packed(poisoned(2))
    state = update.start({"w": jnp.linspace(0.1, 1, twins.VOCAB)})
    for batches, in_a_row in (([bad], 1), ([good], 0), ([good, bad], 1)):
        state, _ = guard(state, batches, [ids] * len(batches))
        assert guard.state() == {"refused_in_a_row": in_a_row}
    kept = np.array(state.params["w"])
    state, _ = guard(state, [bad], [ids])
    with pytest.raises(DivergedError) as caught:
        guard(state, [good], [ids])
    path = tmp_path / "refused" / "step-00000004.json"
    message = str(caught.value)
    assert message.startswith("sft-policy: loss or gradient of step 4 is not finite, the last of 2 in a row")
    for word in ("optimizer.refusals = 2", str(path), "learning", "raise"):
        assert word in message
    np.testing.assert_array_equal(state.params["w"], kept)
    assert sorted(p.name for p in path.parent.iterdir()) == [f"step-{n:08d}.json" for n in (1, 3, 4)]
    cause = json.loads((path.parent / "step-00000003.json").read_text())
    assert (cause["stage"], cause["step"], cause["microbatch"], cause["gradients"]) == ("sft-policy", 3, 1, ["w"])
    # x, y_l and y_w of the third tree, each with its closing token.
    assert cause["tokens"] == [[7, 1, 16, 2, 12, 13, POISON, 3]]


def test_what_refused_steps_there_were_is_part_of_a_checkpoint(tmp_path):
    update = Update(toy_loss(np.nan), optax.sgd(0.1))
    (bad, ids) = packed(poisoned(0))
    guard = Guard(update, tmp_path, "sft-policy", limit=2, in_a_row=1)
    guard(update.start({"w": jnp.ones(twins.VOCAB)}), [bad], [ids])
    with pytest.raises(DivergedError, match="the last of 2 in a row"):
        guard.state()


@pytest.mark.slow
def test_a_batch_of_some_trees_has_their_gradient():
    graphdef, params = twins.random_reward_model(dataclasses.replace(twins.LLAMA, layers=1))
    update = Update(gap_loss(graphdef), optax.sgd(0.1))
    arrays, ids = packed(COLUMNS, gap())
    for slot in (0, 2):
        row, last = np.asarray(arrays["leaf"])[slot, 0]
        (piece,) = [p for p in pieces_of(arrays) if p.row == row and p.first <= last < p.end]
        alone, _ = packed([[column[ids[slot]]] for column in COLUMNS], gap())
        one, two = (update.sums(params, batch) for batch in (only(arrays, [piece]), alone))
        assert float(one.loss.weight) == float(two.loss.weight) == 1
        for a, b in zip(jax.tree.leaves(one.grads), jax.tree.leaves(two.grads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
