"""The chooser: it knows the names, says why not, and never guesses."""

import inspect
from typing import get_args

import pytest

from pit_kernels import UnsupportedImplementationError, dispatch, unsupported_reason

OPERATIONS = get_args(dispatch.Operation)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_xla_and_auto_takes_it(operation):
    assert unsupported_reason(operation, "xla") is None
    assert unsupported_reason(operation, "auto") is None
    assert dispatch.choose(operation, "auto").default == dispatch.choose(operation, "xla").default == "xla"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("implementation", ["pallas_tpu", "triton_gpu"])
def test_a_backend_that_is_not_there_says_so(operation, implementation):
    reason = f"{operation} has no {implementation} backend; available: xla"
    assert unsupported_reason(operation, implementation) == reason
    with pytest.raises(UnsupportedImplementationError, match=reason):
        dispatch.choose(operation, implementation)


def test_unknown_names_are_refused():
    # The undecorated function: under the suite's run-time checks the checker would answer first.
    raw = inspect.unwrap(unsupported_reason)
    with pytest.raises(
        ValueError, match="implementation is 'cuda'; it must be one of auto, pallas_tpu, triton_gpu, xla"
    ):
        raw("gap_reward", "cuda")
    with pytest.raises(ValueError, match="operation is 'softmax'; it must be one of three_way_attention"):
        raw("softmax", "xla")
