"""The GPU kernels lowered and assembled for GPUs that are not attached: exports, registers, spills, shared memory."""

import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import triton_kernels
from jax import export

from pit_kernels import gpu, three_way_attention, token_logprob
from pit_kernels.microbench import gpu_static

pytestmark = [*triton_kernels.compiled, pytest.mark.timeout(1800)]

RESULTS = Path(__file__).parents[2] / "bench/results/gpu.json"
UNCHECKED = [export.DisabledSafetyCheck.custom_call("triton_kernel_call")]


@pytest.mark.parametrize("architecture", gpu.ARCHITECTURES)
@pytest.mark.parametrize("case", gpu_static.ceilings(), ids=lambda case: f"{case.operation}: {case.name}")
def test_kernels_spill_nothing_and_take_no_more_than_committed(case, architecture):
    rows = gpu_static.count(case, architecture)
    assert gpu_static.worse(rows, RESULTS) == []
    missing = gpu_static.uncommitted(rows, RESULTS)
    if missing:
        pytest.skip(f"no spills; registers have no committed figure for {', '.join(missing)}: see docs/gpu.md")


def exported(function, *arguments, architecture):
    """The kernel calls of a program exported for CUDA, decompressed."""
    with jax.sharding.use_abstract_mesh(gpu.mesh_of(architecture)):
        program = export.export(jax.jit(function), platforms=["cuda"], disabled_checks=UNCHECKED)(*arguments)
    text = program.mlir_module()
    configs = re.findall(r'custom_call @triton_kernel_call\(.*?backend_config = "((?:[^"\\]|\\.)*)"', text)
    return [zlib.decompress(_bytes_of(config)) for config in configs]


def _bytes_of(text):
    """The bytes of a string of MLIR, where \\XX is a byte in hexadecimal."""
    unescaped = re.sub(
        rb"\\([0-9A-Fa-f]{2}|[\\\"nt])",
        lambda m: {b"\\": b"\\", b'"': b'"', b"n": b"\n", b"t": b"\t"}.get(m[1]) or bytes([int(m[1], 16)]),
        text.encode("latin-1"),
    )
    return unescaped


def gradients(q, k, v, until):
    return jax.grad(lambda *x: three_way_attention(*x, until).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)


@pytest.mark.parametrize("architecture", gpu.ARCHITECTURES)
def test_auto_exports_the_kernels_for_cuda_in_ptx_that_cuda_12_reads(architecture):
    q, k = (jax.ShapeDtypeStruct((2, 300, heads, 64), jnp.bfloat16) for heads in (4, 2))
    until = jax.ShapeDtypeStruct((2, 300), jnp.int32)
    calls = exported(gradients, q, k, k, until, architecture=architecture)
    assert [re.search(rb"\.entry (\w+)", call)[1] for call in calls] == [
        *(b"forward_kernel", b"query_gradient_kernel", b"key_gradient_kernel")
    ]
    for call in calls:
        assert re.search(rb"\.target (sm_\d+)", call)[1].decode() == architecture
        # CUDA 12.9, the newest 12, assembles PTX 8.8.
        assert float(re.search(rb"\.version (\d\.\d)", call)[1]) <= 8.8


def test_auto_leaves_other_platforms_as_they_are():
    q, until = jax.ShapeDtypeStruct((1, 300, 2, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1, 300), jnp.int32)
    for platform in ("cpu", "tpu"):
        program = jax.jit(three_way_attention).trace(q, q, q, until).lower(lowering_platforms=(platform,)).as_text()
        assert "triton" not in program


def test_log_probabilities_and_their_gradients_export_for_cuda():
    hidden, weight = (jax.ShapeDtypeStruct((rows, 256), jnp.bfloat16) for rows in (256, 1000))
    target = jax.ShapeDtypeStruct((256,), jnp.int32)

    def loss(hidden, weight, target):
        return token_logprob(hidden, weight, target).logp.sum()

    calls = exported(jax.value_and_grad(loss, (0, 1)), hidden, weight, target, architecture="sm_90")
    assert [re.search(rb"\.entry (\w+)", call)[1] for call in calls] == [b"forward_kernel", b"logit_gradient_kernel"]
