"""The two Pallas calls: blocks of the arguments over the grid (row b, key/value head n, block of queries i).

Queries come as [B, N, T, H], the heads of a group next to each other, keys and values as [B, K, S, H] with S keys in
VMEM at once, statistics of queries as [B, K, R, n, 1, Q]. Groups are no axis of the queries: XLA has the projections
write this order, where a reshape in between would make it copy.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from pit_kernels import device
from pit_kernels.dispatch import Interpret
from pit_kernels.three_way_attention.pallas_tpu import backward as _backward
from pit_kernels.three_way_attention.pallas_tpu import forward as _forward
from pit_kernels.three_way_attention.pallas_tpu.shared import Kernel, Spec, Struct, zero
from pit_kernels.three_way_attention.pallas_tpu.vmem import Rows, backward_bytes
from pit_kernels.three_way_attention.visible_blocks import KEYS

_Lists = tuple[Int32[Array, "B n _"], Int32[Array, "B 5 n"]]


def forward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible_until: Int32[Array, "B S"],
    lists: _Lists,
    kernel: Kernel,
    interpret: Interpret,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K R n 1 Q"]]:
    """Return the output, float32 where the keys are a stretch, and log-sum-exp; `visible_until` is that of the keys."""
    specs = _Specs(kernel)
    call = pl.pallas_call(
        functools.partial(_forward.kernel, kernel=kernel),
        grid=specs.grid,
        in_specs=[specs.blocks, specs.counts, specs.queries, specs.keys, specs.keys, specs.until],
        out_specs=[specs.queries, specs.statistics],
        out_shape=[specs.of_queries(_partial(kernel)), specs.of_statistics()],
        scratch_shapes=_forward.scratch(kernel),
        compiler_params=_compiler_params(),
        cost_estimate=specs.cost(products=2),
        name="three_way_attention_forward",
        interpret=interpret,
    )
    out, lse = call(*lists, q, k, v, specs.rows(visible_until))
    return out, lse


def backward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible_until: Int32[Array, "B S"],
    lse: Float[Array, "B K R n 1 Q"],
    delta: Float[Array, "B K R n 1 Q"],
    d_out: Float[Array, "B N T H"],
    lists: _Lists,
    kernel: Kernel,
    interpret: Interpret,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K S H"], Float[Array, "B K S H"]]:
    """Return the gradients of q, float32 where the keys are a stretch, and of k and v."""
    specs = _Specs(kernel)
    call = pl.pallas_call(
        functools.partial(_backward.kernel, kernel=kernel),
        grid=specs.grid,
        in_specs=[
            *(specs.blocks, specs.counts, specs.queries, specs.keys, specs.keys),
            *(specs.queries, specs.until, specs.statistics, specs.statistics),
        ],
        out_specs=[specs.queries, specs.keys, specs.keys],
        out_shape=[specs.of_queries(_partial(kernel)), specs.of_keys(), specs.of_keys()],
        scratch_shapes=_backward.scratch(kernel),
        compiler_params=_compiler_params(),
        cost_estimate=specs.cost(products=5),
        name="three_way_attention_backward",
        interpret=interpret,
    )
    d_q, d_k, d_v = call(*lists, q, k, v, d_out, specs.rows(visible_until), lse, delta)
    return d_q, d_k, d_v


def _partial(kernel: Kernel) -> Any:
    """Return the dtype of results: float32 where stretches still have to be added up."""
    return jnp.float32 if kernel.stretch else kernel.shape.dtype


class _Specs:
    """Blocks and shapes of the arguments of a call."""

    def __init__(self, kernel: Kernel) -> None:
        shape, queries = kernel.shape, kernel.tiles.queries
        self._kernel, self._n = kernel, shape.tokens // queries
        self.grid = (shape.batch, shape.kv_heads, self._n)
        self.blocks = Spec(
            (1, self._n, shape.key_blocks + kernel.wide), lambda b, n, i: (b, zero(), zero()), memory_space=pltpu.SMEM
        )
        self.counts = Spec((1, 5, self._n), lambda b, n, i: (b, zero(), zero()), memory_space=pltpu.SMEM)
        self.queries = Spec((1, shape.group, queries, shape.width), lambda b, n, i: (b, n, i, zero()))
        rows = Rows(shape.group, shape.width, jnp.dtype(shape.dtype).itemsize, kernel.tiles)
        two = backward_bytes(rows, shape.keys, windows=2, stretch=kernel.stretch)
        # Two windows fetch the next row's keys while this one's are used; where VMEM is small, one must do. The count
        # can be 2 % short, and a fetch that is waited for is better than a call that is refused.
        windows = 2 if two <= device.vmem_bytes() * 15 // 16 else 1
        self.keys = Spec(
            (1, 1, shape.keys, shape.width),
            lambda b, n, i: (b, n, zero(), zero()),
            pipeline_mode=pl.Buffered(windows),
        )
        self.until = Spec((1, shape.key_blocks, 1, KEYS), lambda b, n, i: (b, zero(), zero(), zero()))
        self.statistics = Spec((1, 1, shape.group, 1, 1, queries), lambda b, n, i: (b, n, zero(), i, zero(), zero()))

    def rows(self, visible_until: Array) -> Array:
        return visible_until.reshape(-1, self._kernel.shape.key_blocks, 1, KEYS)

    def of_queries(self, dtype: Any) -> Struct:
        s = self._kernel.shape
        return Struct((s.batch, s.kv_heads * s.group, s.tokens, s.width), dtype)

    def of_keys(self) -> Struct:
        s = self._kernel.shape
        return Struct((s.batch, s.kv_heads, s.keys, s.width), s.dtype)

    def of_statistics(self) -> Struct:
        return Struct(statistics_shape(self._kernel), jnp.float32)

    def cost(self, products: int) -> pl.CostEstimate:
        """Return the cost of a plain causal mask, for XLA's scheduler: visible pairs are known only on the device."""
        s = self._kernel.shape
        pairs = s.batch * s.kv_heads * s.group * s.tokens * s.keys // 2
        item = jnp.dtype(s.dtype).itemsize
        of_queries, of_keys = math.prod(self.of_queries(s.dtype).shape), math.prod(self.of_keys().shape)
        crossings = (2, 2) if products == 2 else (3, 4)
        return pl.CostEstimate(
            flops=2 * products * pairs * s.width,
            transcendentals=pairs,
            bytes_accessed=(crossings[0] * of_queries + crossings[1] * of_keys) * item,
        )


def statistics_shape(kernel: Kernel) -> tuple[int, ...]:
    """Return [B, K, R, n, 1, Q], the shape of values per query with blocks of queries on a separate axis."""
    s, queries = kernel.shape, kernel.tiles.queries
    return (s.batch, s.kv_heads, s.group, s.tokens // queries, 1, queries)


def _compiler_params() -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=device.vmem_bytes(),
    )
