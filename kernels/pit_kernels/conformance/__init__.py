"""The conformance suite: every backend, peer and contender must pass it before its speed is reported.

`rule` is the one bound on errors, `cases` the deterministic calls, `check` runs them, `operations` judges our backends.
`trees` judges packers of trees, and models on them.
"""

from pit_kernels.conformance.cases import attention_cases, cached_attention_cases, gap_reward_cases, token_logprob_cases
from pit_kernels.conformance.check import Case, Failure, Verdict, first_failure, judge
from pit_kernels.conformance.operations import OPERATIONS, judge_backend
from pit_kernels.conformance.rows import LENGTHS, write_segments
from pit_kernels.conformance.rule import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_within_rule, errors
from pit_kernels.conformance.trees import forests, judge_model, packing_failure

__all__ = [
    "GRADIENT_FACTOR",
    "LENGTHS",
    "OPERATIONS",
    "OUTPUT_FACTOR",
    "Case",
    "Failure",
    "Verdict",
    "assert_within_rule",
    "attention_cases",
    "cached_attention_cases",
    "errors",
    "first_failure",
    "forests",
    "gap_reward_cases",
    "judge",
    "judge_backend",
    "judge_model",
    "packing_failure",
    "token_logprob_cases",
    "write_segments",
]
