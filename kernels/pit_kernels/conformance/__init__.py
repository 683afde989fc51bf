"""What every backend, peer and contender must pass before anything is said about its speed.

`rule` is the one bound on errors, `cases` the deterministic calls it is judged on, `check` runs them.
"""

from pit_kernels.conformance.cases import CASES, attention_cases, gap_reward_cases, token_logprob_cases
from pit_kernels.conformance.check import Case, Failure, Verdict, first_failure, judge
from pit_kernels.conformance.rows import LENGTHS, write_segments
from pit_kernels.conformance.rule import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_within_rule, errors

__all__ = [
    "CASES",
    "GRADIENT_FACTOR",
    "LENGTHS",
    "OUTPUT_FACTOR",
    "Case",
    "Failure",
    "Verdict",
    "assert_within_rule",
    "attention_cases",
    "errors",
    "first_failure",
    "gap_reward_cases",
    "judge",
    "token_logprob_cases",
    "write_segments",
]
