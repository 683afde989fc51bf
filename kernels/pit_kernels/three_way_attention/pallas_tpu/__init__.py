"""Three-way attention for TPUs, in Pallas: only blocks that can see something cost anything.

A row's keys and values lie in VMEM while its blocks of queries pass, so q, k, v and the output cross HBM once, forward
and backward, whatever the mask. The online softmax is FlashAttention's (Dao, arXiv 2307.08691).
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pit_kernels import device
from pit_kernels.three_way_attention.pallas_tpu import backward as _backward
from pit_kernels.three_way_attention.pallas_tpu import forward as _forward
from pit_kernels.three_way_attention.pallas_tpu.shared import (
    Kernel,
    Shape,
    Spec,
    Struct,
    lists,
    make,
    zero,
)
from pit_kernels.three_way_attention.settings import Settings
from pit_kernels.three_way_attention.visible_blocks import KEYS

_MIB = 2**20


def unsupported_reason(tokens: int, width: int, dtype: Any) -> str | None:
    """Why these kernels cannot serve a call, or None.

    Args:
      tokens: length of a row.
      width: width of a head.
      dtype: of q, k and v.
    """
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"its inputs are {jnp.dtype(dtype).name}, and it computes in bfloat16 and float32"
    kind = device.kind()
    needed = _row_bytes(padded_tokens(tokens), padded_width(width), jnp.dtype(dtype).itemsize, windows=1)
    if needed > device.vmem_bytes():
        return (
            f"a row of {tokens} tokens with heads of {width} needs {needed // _MIB} MiB of VMEM in the backward pass, "
            f"and a {kind} lends {device.vmem_bytes() // _MIB}"
        )
    return None


def padded_tokens(tokens: int, queries: int = KEYS) -> int:
    """Tokens of a row inside: whole blocks of `queries`, a multiple of 128."""
    return max(-(-tokens // queries), 1) * queries


def padded_width(width: int) -> int:
    """Width of a head inside: 64, or whole registers of 128 lanes."""
    return 64 if width <= 64 else -(-width // KEYS) * KEYS


def _row_bytes(tokens: int, width: int, itemsize: int, windows: int) -> int:
    """VMEM of the backward kernel: `windows` of k, v and their gradients, sums, transposed keys, columns, and tiles."""
    lanes = max(width, KEYS)
    whole = 4 * windows * tokens * lanes * itemsize
    sums = 2 * tokens * lanes * 4
    marks = (tokens + KEYS) * KEYS * 4 + tokens * KEYS * itemsize
    return whole + sums + tokens * lanes * itemsize + marks + 5 * _MIB // 2


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    settings: Settings,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Output and log-sum-exp (natural log, -inf in padding)."""
    tokens, width = q.shape[1], q.shape[3]
    q, k, v, visible_until = _padded(settings, q, k, v, visible_until)
    kernel = make(_shape(q, k), settings)
    specs = _Specs(kernel)
    call = pl.pallas_call(
        functools.partial(_forward.kernel, kernel=kernel),
        grid=specs.grid,
        in_specs=[specs.blocks, specs.counts, specs.queries, specs.keys, specs.keys, specs.until],
        out_specs=[specs.queries, specs.statistics],
        out_shape=[specs.of_queries(q.dtype), specs.of_statistics()],
        scratch_shapes=_forward.scratch(kernel),
        compiler_params=_compiler_params(),
        cost_estimate=specs.cost(products=2),
        name="three_way_attention_forward",
        interpret=settings.interpret,
    )
    out, lse = call(*lists(visible_until, kernel), specs.heads(q), *map(_heads, (k, v)), specs.rows(visible_until))
    out = out.reshape(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).swapaxes(1, 2)
    return out[:, :tokens, :, :width], lse.reshape(q.shape[0], q.shape[2], q.shape[1])[:, :, :tokens]


def backward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    visible_until: Int32[Array, "B T"],
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    d_out: Float[Array, "B T N H"],
    settings: Settings,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Gradients of q, k and v; `lse` and `delta` are 0 in padding."""
    tokens, width = q.shape[1], q.shape[3]
    q, k, v, visible_until = _padded(settings, q, k, v, visible_until)
    d_out = _padded_heads(settings, d_out)
    lse, delta = (jnp.pad(x, ((0, 0), (0, 0), (0, q.shape[1] - tokens))) for x in (lse, delta))
    kernel = make(_shape(q, k), settings)
    specs = _Specs(kernel)
    call = pl.pallas_call(
        functools.partial(_backward.kernel, kernel=kernel),
        grid=specs.grid,
        in_specs=[
            *(specs.blocks, specs.counts, specs.queries, specs.keys, specs.keys),
            *(specs.queries, specs.until, specs.statistics, specs.statistics),
        ],
        out_specs=[specs.queries, specs.keys, specs.keys],
        out_shape=[specs.of_queries(q.dtype), specs.of_keys(q.dtype), specs.of_keys(q.dtype)],
        scratch_shapes=_backward.scratch(kernel),
        compiler_params=_compiler_params(),
        cost_estimate=specs.cost(products=5),
        name="three_way_attention_backward",
        interpret=settings.interpret,
    )
    d_q, d_k, d_v = call(
        *lists(visible_until, kernel),
        *(specs.heads(q), _heads(k), _heads(v), specs.heads(d_out), specs.rows(visible_until)),
        *(x.reshape(specs.of_statistics().shape) for x in (lse, delta)),
    )
    d_q = d_q.reshape(q.shape[0], q.shape[2], q.shape[1], q.shape[3]).swapaxes(1, 2)
    d_q, d_k, d_v = (x[:, :tokens, :, :width] for x in (d_q, d_k.swapaxes(1, 2), d_v.swapaxes(1, 2)))
    return d_q, d_k, d_v


class _Specs:
    """Blocks of the arguments over the grid (row b, key/value head n, block of queries i)."""

    def __init__(self, kernel: Kernel) -> None:
        shape, queries = kernel.shape, kernel.tiles.queries
        self._kernel, self._n = kernel, shape.tokens // queries
        self.grid = (shape.batch, shape.kv_heads, self._n)
        self.blocks = Spec(
            (1, self._n, shape.key_blocks + kernel.wide), lambda b, n, i: (b, zero(), zero()), memory_space=pltpu.SMEM
        )
        self.counts = Spec((1, 4, self._n), lambda b, n, i: (b, zero(), zero()), memory_space=pltpu.SMEM)
        self.queries = Spec((1, 1, shape.group, queries, shape.width), lambda b, n, i: (b, n, zero(), i, zero()))
        two = _row_bytes(shape.tokens, shape.width, jnp.dtype(shape.dtype).itemsize, windows=2)
        # Two windows fetch the next row's keys while this one's are used; where VMEM is small, one must do.
        windows = 2 if two <= device.vmem_bytes() else 1
        self.keys = Spec(
            (1, 1, shape.tokens, shape.width),
            lambda b, n, i: (b, n, zero(), zero()),
            pipeline_mode=pl.Buffered(windows),
        )
        self.until = Spec((1, shape.key_blocks, 1, KEYS), lambda b, n, i: (b, zero(), zero(), zero()))
        self.statistics = Spec((1, 1, shape.group, 1, 1, queries), lambda b, n, i: (b, n, zero(), i, zero(), zero()))

    def heads(self, x: Array) -> Array:
        """[B, T, N, H] to [B, K, R, T, H]."""
        s = self._kernel.shape
        return x.swapaxes(1, 2).reshape(s.batch, s.kv_heads, s.group, s.tokens, s.width)

    def rows(self, visible_until: Array) -> Array:
        return visible_until.reshape(-1, self._kernel.shape.key_blocks, 1, KEYS)

    def of_queries(self, dtype: Any) -> Struct:
        s = self._kernel.shape
        return Struct((s.batch, s.kv_heads, s.group, s.tokens, s.width), dtype)

    def of_keys(self, dtype: Any) -> Struct:
        s = self._kernel.shape
        return Struct((s.batch, s.kv_heads, s.tokens, s.width), dtype)

    def of_statistics(self) -> Struct:
        s = self._kernel.shape
        return Struct((s.batch, s.kv_heads, s.group, self._n, 1, self._kernel.tiles.queries), jnp.float32)

    def cost(self, products: int) -> pl.CostEstimate:
        """For XLA's scheduler: what a plain causal mask costs; what a call sees is known only on the device."""
        s = self._kernel.shape
        pairs = s.batch * s.kv_heads * s.group * s.tokens * s.tokens // 2
        item = jnp.dtype(s.dtype).itemsize
        of_queries, of_keys = math.prod(self.of_queries(s.dtype).shape), math.prod(self.of_keys(s.dtype).shape)
        crossings = (2, 2) if products == 2 else (3, 4)
        return pl.CostEstimate(
            flops=2 * products * pairs * s.width,
            transcendentals=pairs,
            bytes_accessed=(crossings[0] * of_queries + crossings[1] * of_keys) * item,
        )


def _shape(q: Array, k: Array) -> Shape:
    batch, tokens, heads, width = q.shape
    return Shape(batch, k.shape[2], heads // k.shape[2], tokens, width, q.dtype)


def _heads(x: Array) -> Array:
    return x.swapaxes(1, 2)


def _padded_heads(settings: Settings, x: Array) -> Array:
    """Whole blocks of tokens and a width that registers hold; zeros change no product."""
    _, tokens, _, width = x.shape
    ends = (padded_tokens(tokens, settings.tiles.queries) - tokens, padded_width(width) - width)
    return jnp.pad(x, ((0, 0), (0, ends[0]), (0, 0), (0, ends[1]))) if any(ends) else x


def _padded(
    settings: Settings, q: Array, k: Array, v: Array, visible_until: Array
) -> tuple[Array, Array, Array, Array]:
    end = padded_tokens(q.shape[1], settings.tiles.queries) - q.shape[1]
    q, k, v = (_padded_heads(settings, x) for x in (q, k, v))
    # A token that is added has visible_until 0: padding, by the formula.
    return q, k, v, jnp.pad(visible_until, ((0, 0), (0, end)))


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=device.vmem_bytes(),
    )
