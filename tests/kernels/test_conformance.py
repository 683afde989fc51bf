"""The conformance suite: every listed backend passes it, and it catches a kernel that is a little wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
import triton_kernels

from pit_kernels import UnsupportedImplementationError, three_way_attention
from pit_kernels.conformance import OPERATIONS, attention_cases, errors, judge, judge_backend
from pit_kernels.conformance.__main__ import main
from pit_kernels.operations import BACKENDS

EVERYTHING = OPERATIONS["three_way_attention"].serves
LISTED = [(operation, backend) for operation, backends in BACKENDS.items() for backend in backends]


def attention(*arguments, **options):
    return three_way_attention(*arguments, implementation="xla", **options)


TELLING = {
    "three_way_attention": {
        "wide: one root token and leaves of one token, float32",
        "segments of 127, 128 and 129, float32",
        "a tree starts after padding of more than a block, float32",
    },
    "cached_attention": {"caches that fill no block, float32"},
    "token_logprob": {"float32, logp+lse+entropy"},
    "gap_reward": {"float32"},
}
"""Cases of the fast tests: one program per operation and backend, and the rows that reveal most mistakes."""

of_the_lists = pytest.mark.parametrize(
    ("operation", "backend"),
    [pytest.param(*pair, marks=triton_kernels.interpreted if pair[1].name == "triton_gpu" else ()) for pair in LISTED],
    ids=lambda x: getattr(x, "name", x),
)


@of_the_lists
def test_every_backend_of_the_lists_conforms_in_telling_cases(operation, backend):
    cases = [case for case in OPERATIONS[operation].cases() if case.name in TELLING[operation]]
    assert {case.name for case in cases} == TELLING[operation]
    verdict = judge_backend(operation, backend, cases)
    assert (verdict.failure, verdict.passed) == (None, len(cases)), str(verdict.failure)


@pytest.mark.slow
@of_the_lists
def test_every_backend_of_the_lists_conforms(operation, backend):
    verdict = judge_backend(operation, backend)
    assert verdict.failure is None, str(verdict.failure)
    assert verdict.passed > 0


def test_the_command_names_the_backends_that_there_are():
    with pytest.raises(SystemExit, match=r"^gap_reward has no sparse backend; available: pallas_tpu, xla$"):
        main(["gap_reward", "sparse"])
    with pytest.raises(SystemExit, match=r"^usage: .* operations: three_way_attention, cached_attention"):
        main(["softmax", "xla"])


def test_every_operation_is_judged():
    assert set(OPERATIONS) == set(BACKENDS) == set(TELLING)


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
    names = ["packed sequences, bfloat16", "gap trees, bfloat16"]
    verdict = judge(attention, [case for case in attention_cases() if case.name in names], frozenset())
    assert (verdict.failure, verdict.passed, verdict.skipped) == (None, 1, ("gap trees, bfloat16",))


def test_the_rule_bounds_by_the_naive_formula_with_a_floor():
    truth = np.array([1.0, 2.0])
    assert errors(truth + 2e-3, truth + 1e-3, truth, factor=2).within
    assert not errors(truth + 2.1e-3, truth + 1e-3, truth, factor=2).within
    assert errors(truth + 1e-6, truth, truth, factor=2).within
    assert not errors(np.array([np.nan, 2.0]), truth, truth, factor=2).within
    with pytest.raises(ValueError, match=r"^the truth has dtype float32; it must be float64"):
        errors(truth, truth, truth.astype(np.float32), factor=2)


def test_a_backend_that_refuses_a_case_is_not_given_it_and_must_serve_one():
    def only_float32(q, *arguments, **options):
        if q.dtype != jnp.float32:
            raise UnsupportedImplementationError("float32 only")
        return attention(q, *arguments, **options)

    first, *_, last = attention_cases()
    verdict = judge(only_float32, [first, last], EVERYTHING)
    assert (verdict.failure, verdict.passed, verdict.skipped) == (None, 1, (last.name,))
    assert str(judge(only_float32, [last], EVERYTHING).failure).startswith("all cases: it serves none of them")


def test_a_contender_that_serves_no_case_has_not_passed():
    verdict = judge(attention, OPERATIONS["token_logprob"].cases(), frozenset({"sums"}))
    assert str(verdict.failure) == "all cases: it serves none of them; it claims sums"
