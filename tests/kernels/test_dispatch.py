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
def test_a_backend_that_is_not_there_says_so(operation):
    implementation = "triton_gpu"
    reason = f"{operation} has no triton_gpu backend; available: "
    assert unsupported_reason(operation, implementation).startswith(reason)
    with pytest.raises(UnsupportedImplementationError, match=reason):
        dispatch.choose(operation, implementation)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if "pallas_tpu" in dispatch._AVAILABLE[name]])
def test_auto_takes_the_tpu_kernel_where_it_serves(operation):
    assert dispatch.choose(operation, "auto") == dispatch.Route(tpu="pallas_tpu", default="xla")
    refused = dispatch.choose(operation, "auto", refusals={"pallas_tpu": "too long"})
    assert refused == dispatch.Route(tpu="xla", default="xla")
    with pytest.raises(UnsupportedImplementationError, match="pallas_tpu cannot serve this call: too long"):
        dispatch.choose(operation, "pallas_tpu", refusals={"pallas_tpu": "too long"})
    with pytest.raises(UnsupportedImplementationError, match="interpret is for TPU kernels"):
        dispatch.choose(operation, "xla", interpret=True)
    assert dispatch.choose(operation, "auto", interpret=True).default == "pallas_tpu"


def test_unknown_names_are_refused():
    # The undecorated function: under the suite's run-time checks the checker would answer first.
    raw = inspect.unwrap(unsupported_reason)
    with pytest.raises(
        ValueError, match="implementation is 'cuda'; it must be one of auto, pallas_tpu, triton_gpu, xla"
    ):
        raw("gap_reward", "cuda")
    with pytest.raises(ValueError, match="operation is 'softmax'; it must be one of three_way_attention"):
        raw("softmax", "xla")
