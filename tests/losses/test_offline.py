"""DPO and SRPO by their definitions, and log-probs of outputs in packed trees against separate paths."""

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.data.packing import Layout, pack
from pit.data.template import improver_orders, policy_pair
from pit.losses import offline
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.run.stage import ANCHORED
from pit.stages.offline import dpo_loss, output_logps, srpo_loss
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW, Closings

RATIOS = st.floats(-30, 30, width=32)
BETAS = st.sampled_from([0.1, 1.0])

dpo, srpo = (twins.jit(loss, static_argnames="beta") for loss in (offline.dpo, offline.srpo_improvement))
output_sums = twins.jit(offline.output_sums)


@settings(max_examples=examples(30))
@given(ratio=hnp.arrays(np.float32, (5, 2), elements=RATIOS), present=hnp.arrays(bool, 5), beta=BETAS)
def test_dpo_by_its_definition(ratio, present, beta):
    exact = ratio.astype(np.float64)
    expected = np.logaddexp(0.0, -beta * (exact[:, 0] - exact[:, 1])) @ present
    loss = dpo(ratio, present, beta=beta)
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-5, atol=1e-6)
    assert float(loss.weight) == present.sum()


@settings(max_examples=examples(30))
@given(ratio=hnp.arrays(np.float32, (5, 4), elements=RATIOS), present=hnp.arrays(bool, 5), beta=BETAS)
def test_srpo_by_its_definition_in_both_orders(ratio, present, beta):
    """(beta (ratio(y | ref) - ratio(ref | ref)) - (p(y > ref) - 1/2))^2, mean over the orders of a pair."""
    total = 0.0
    for row, there in zip(ratio.astype(np.float64), present, strict=True):
        of = {"wl": row[GAP_WL], "ll": row[GAP_LL], "lw": row[GAP_LW], "ww": row[GAP_WW]}
        for y, ref, p in (("w", "l", 1.0), ("l", "w", 0.0)):
            total += there * 0.5 * (beta * (of[y + ref] - of[ref + ref]) - (p - 0.5)) ** 2
    np.testing.assert_allclose(srpo(ratio, present, beta=beta).sum, total, rtol=1e-4, atol=1e-6)


def test_the_best_improver_of_a_pair_is_half_a_unit_from_copying():
    """By hand: at beta = .1 a ratio of 5 nats to mend the worse answer, and of -5 to spoil the better one."""
    ratio = np.zeros((1, 4), np.float32)
    ratio[0, GAP_WL], ratio[0, GAP_LW] = 5.0, -5.0
    assert float(srpo(ratio, np.array([True]), beta=0.1).sum) == pytest.approx(0.0, abs=1e-12)


def trees(topology, rows=3):
    """Trees of random contents, packed into rows that hold several of them, with the columns."""
    dice = np.random.default_rng(0)
    columns = [[dice.integers(8, 40, dice.integers(1, 6)).tolist() for _ in range(7)] for _ in range(3)]
    layout = Layout(Closings.roles(1, 2, 3), 0, row_length=64, rows=rows, trees=8)
    return columns, [dict(vars(batch)) for batch in pack(columns, topology, layout)]


@pytest.mark.parametrize("topology", [policy_pair(), improver_orders()], ids=lambda t: t.name)
def test_sums_of_outputs_are_those_of_their_tokens(topology):
    columns, batches = trees(topology)
    closing, seen = {0: 1, 1: 2, 2: 3}, 0
    for batch in batches:
        values = np.random.default_rng(1).normal(size=batch["token"].shape).astype(np.float32)
        poisoned = np.where(batch["loss_weight"] > 0, values, np.nan).astype(np.float32)
        sums = np.asarray(output_sums(poisoned, batch["loss_weight"], batch["previous"], batch["leaf"]))
        for slot, example in enumerate(batch["example_id"].tolist()):
            for segment in (s for s in topology.segments if s.leaf >= 0):
                row, end = batch["leaf"][slot, segment.leaf]
                if example < 0:
                    assert sums[slot, segment.leaf] == 0
                    continue
                content = columns[segment.column][example]
                first = end - len(content)
                assert batch["token"][row, first : end + 1].tolist() == [*content, closing[2]]
                np.testing.assert_allclose(sums[slot, segment.leaf], values[row, first : end + 1].sum(), rtol=1e-4)
                seen += 1
    assert seen == 7 * topology.leaves


@pytest.mark.parametrize(
    ("topology", "make"), [(policy_pair(), dpo_loss), (improver_orders(), srpo_loss)], ids=["dpo", "srpo"]
)
def test_at_the_anchor_the_loss_is_that_of_equal_ratios_and_its_gradient_prefers_the_better_answer(topology, make):
    model = Model.build(Decoder, twins.LLAMA, 40, 1)
    _, (batch, *_) = trees(topology)
    arrays = {name: jnp.asarray(batch[name]) for name in ("token", "position", "visible_until", "previous", "leaf")}
    arrays["loss_weight"] = jnp.asarray(batch["loss_weight"])
    logps = twins.jit(output_logps(model.graphdef))
    arrays[ANCHORED] = logps(model.params, arrays)
    loss = make(model.graphdef, 0.1)

    def mean(params):
        total, metrics = loss(params, arrays)
        return total.sum / total.weight, metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(model.params)
    assert float(value) == pytest.approx(np.log(2) if make is dpo_loss else 0.25, abs=1e-6)
    assert float(metrics["rewards/margin"].sum) == pytest.approx(0.0, abs=1e-5)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in gradient.values())))
    step = {name: weight - jnp.float32(0.02 / norm) * gradient[name] for name, weight in model.params.items()}
    moved = np.asarray(logps(step, arrays) - arrays[ANCHORED])[np.asarray(arrays["leaf"][:, 0, 0] >= 0)]
    if make is dpo_loss:
        assert np.mean(moved[:, 0] - moved[:, 1]) > 0
    else:
        assert np.mean(moved[:, GAP_WL] - moved[:, GAP_LL]) > 0
        assert np.mean(moved[:, GAP_WW] - moved[:, GAP_LW]) > 0
