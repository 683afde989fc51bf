"""GPU kernels where Triton is missing or cannot serve: "auto" leaves them out, a named call says why and what to do."""

import jax
import jax.numpy as jnp
import pytest

from pit_kernels import UnsupportedImplementationError, gpu, triton_call
from pit_kernels.conformance import OPERATIONS
from pit_kernels.operations import BACKENDS
from pit_kernels.partition import WHOLE
from pit_kernels.three_way_attention import triton_gpu
from pit_kernels.three_way_attention.settings import Settings

SETTINGS = Settings(1.0, None, None, None, False, WHOLE)
WITH_TRITON = [name for name, backends in BACKENDS.items() if "triton_gpu" in [backend.name for backend in backends]]


@pytest.fixture
def installed(monkeypatch):
    """Set which modules are installed."""

    def choose(*names):
        monkeypatch.setattr(triton_call, "_installed", lambda module: module in names)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    return choose


def arguments(operation):
    """The arguments of a case of conformance."""
    case = OPERATIONS[operation].cases()[0]
    floats = [jnp.asarray(x, case.dtype) for x in case.floats]
    return [*floats, *map(jnp.asarray, case.others)]


def refusal(shape, dtype):
    """Why the attention kernels refuse a call, of which they read shapes and dtypes."""
    reasons = []

    def call(q, until):
        reasons.append(triton_gpu.refuses(SETTINGS, q, q, q, until))

    jax.eval_shape(call, jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:2], jnp.int32))
    return reasons[0]


@pytest.mark.parametrize("operation", WITH_TRITON)
def test_without_triton_a_named_call_says_what_to_install_and_auto_runs(operation, installed):
    installed()
    call = OPERATIONS[operation].call
    message = (
        rf"^{operation}: triton_gpu cannot serve this call: JAX has no CUDA plugin here; install it: "
        r"pip install 'pit-jax\[gpu\]'. Ask for implementation=\"auto\" to take what there is: "
    )
    with pytest.raises(UnsupportedImplementationError, match=message):
        call(*arguments(operation), implementation="triton_gpu")
    program = jax.jit(call).trace(*arguments(operation)).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" not in program


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["jax_cuda12_plugin"], "triton and jax-triton are not installed; install them"),
        (["jax_cuda13_plugin", "triton"], "jax-triton is not installed; install it"),
        (["triton", "jax_triton"], "JAX has no CUDA plugin here; install it"),
    ],
)
def test_what_is_missing_is_named(names, reason, installed):
    installed(*names)
    assert triton_call.absent_reason() == f"{reason}: pip install 'pit-jax[gpu]'"


def test_nothing_is_missing_where_all_is_installed(installed, monkeypatch):
    installed("triton", "jax_triton", "jax_cuda12_plugin")
    assert triton_call.absent_reason() is None
    installed("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_call.absent_reason() is None


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 8, 2, 300), jnp.float32, "q has width 300, and it takes heads of at most 256"),
        ((1, 8, 2, 64), jnp.float8_e5m2, "q has dtype float8_e5m2, and it computes in bfloat16, float16 and float32"),
        ((1, 2**17, 128, 128), jnp.bfloat16, "a row of q holds 2147483648 numbers, and it takes fewer than 2**31"),
        ((1, 0, 2, 64), jnp.float32, "q has shape (1, 0, 2, 64), and it takes no empty arrays"),
    ],
)
def test_what_the_attention_kernels_cannot_serve_is_named(shape, dtype, reason, installed):
    installed("triton", "jax_triton", "jax_cuda12_plugin")
    assert refusal(shape, dtype) == reason


def test_a_gpu_without_tiles_is_refused_by_its_number(installed):
    installed("triton", "jax_triton", "jax_cuda12_plugin")
    for name, number in (("sm_75", "7.5"), ("sm_86", "8.6"), ("sm_120", "12.0")):
        with jax.sharding.use_abstract_mesh(gpu.mesh_of(name)):
            reason = refusal((1, 8, 2, 64), jnp.float32)
        assert reason == (
            f"the GPU has compute capability {number}, and it has tiles for 8.0, 9.0 and 10.x, with shared memory for "
            "them"
        )
    for name in (*gpu.ARCHITECTURES, "sm_103"):
        with jax.sharding.use_abstract_mesh(gpu.mesh_of(name)):
            assert refusal((1, 8, 2, 64), jnp.float32) is None


def test_the_interpreter_refuses_bfloat16_which_it_computes_wrongly(installed, monkeypatch):
    installed("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = triton_call.unsupported_dtype("q", jnp.bfloat16)
    assert reason == "q has dtype bfloat16, which Triton's interpreter computes wrongly; use float32 or float16"
    assert triton_call.unsupported_dtype("q", jnp.float16) is None


@pytest.mark.parametrize("operation", WITH_TRITON)
def test_every_architecture_has_tiles_of_the_same_kernels(operation):
    from pit_kernels import tiles

    table = tiles._table(operation, "tiles_gpu.json")
    assert tuple(table) == gpu.ARCHITECTURES
    assert len({tuple(entries) for entries in table.values()}) == 1


def test_tiles_follow_the_gpu_of_the_mesh():
    @jax.jit
    def marked(x):
        return x * gpu.capability()

    for name in gpu.ARCHITECTURES:
        with jax.sharding.use_abstract_mesh(gpu.mesh_of(name)):
            assert gpu.architecture() == name
            # JAX keeps a program for each mesh.
            assert marked(jnp.int32(1)) == int(name.removeprefix("sm_"))
