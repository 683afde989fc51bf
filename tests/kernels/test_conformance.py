"""The rule itself, and that the judge passes our operations and catches a kernel that is a little wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

from pit_kernels import leaf_scores, three_way_attention, token_logprob
from pit_kernels.conformance import CASES, attention_cases, errors, judge

EVERYTHING = frozenset({"trees", "grouped", "soft_cap", "temperature", "ragged", "entropy"})


def attention(*arguments, **options):
    return three_way_attention(*arguments, implementation="xla", **options)


def logprob(*arguments, **options):
    return tuple(token_logprob(*arguments, implementation="xla", **options))


def scores(hidden, scale, weight, bias, leaf):
    return leaf_scores(hidden, leaf, scale, weight, bias, eps=1e-5, implementation="xla")


OURS = {"three_way_attention": attention, "token_logprob": logprob, "gap_reward": scores}


@pytest.mark.parametrize("operation", CASES)
def test_our_operations_pass_every_case(operation):
    verdict = judge(OURS[operation], CASES[operation](), EVERYTHING)
    assert verdict.failure is None, str(verdict.failure)
    assert verdict.passed + len(verdict.skipped) == len(CASES[operation]())


def test_a_mask_that_is_wrong_by_one_token_is_caught_and_named():
    def leaky(q, k, v, until, **options):
        return attention(q, k, v, jnp.where(until > 0, until + 1, until).astype(jnp.int32), **options)

    verdict = judge(leaky, attention_cases(), EVERYTHING)
    assert str(verdict.failure).startswith("wide: one root token and leaves of one token, float32: out has error")


def test_a_contender_that_raises_has_failed():
    def refusing(*arguments, **options):
        raise RuntimeError("no room\nin VMEM")

    verdict = judge(refusing, attention_cases(), frozenset())
    assert str(verdict.failure) == "one tree fills the row, float32: raised RuntimeError: no room"


def test_what_is_not_served_is_skipped_by_name():
    verdict = judge(attention, attention_cases(), frozenset())
    assert verdict.failure is None
    assert "gap trees, bfloat16" in verdict.skipped
    assert "packed sequences, bfloat16" not in verdict.skipped


def test_the_rule_bounds_by_the_naive_formula_with_a_floor():
    truth = np.array([1.0, 2.0])
    assert errors(truth + 2e-3, truth + 1e-3, truth, factor=2).within
    assert not errors(truth + 2.1e-3, truth + 1e-3, truth, factor=2).within
    assert errors(truth + 1e-6, truth, truth, factor=2).within
    assert not errors(np.array([np.nan, 2.0]), truth, truth, factor=2).within
    with pytest.raises(ValueError, match=r"^the truth has dtype float32; it must be float64"):
        errors(truth, truth, truth.astype(np.float32), factor=2)


def test_who_serves_no_case_has_not_passed():
    verdict = judge(logprob, CASES["token_logprob"](), frozenset({"sums"}))
    assert str(verdict.failure) == "all cases: it serves none of them; it claims sums"
