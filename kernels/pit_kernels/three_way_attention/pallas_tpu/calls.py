"""The two Pallas calls: blocks of the arguments over the grid (row b, key/value head n, block of queries i).

Cores run rows side by side, or where a device has two cores and an odd number of rows, parts of the heads: the parts
are then one more axis of the grid, the outermost.

Queries come as [B, N, T, H], the heads of a group next to each other, keys and values as [B, K, S, H] with S keys in
VMEM at once, statistics of queries as [B, K, R, n, 1, Q]. Groups are no axis of the queries: XLA has the projections
write this order, where a reshape in between would make it copy.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

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
from pit_kernels.three_way_attention.visible_blocks import KEYS, Window

_Lists = tuple[Int32[Array, "B n _"], Int32[Array, "B 5 n"]]


def forward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible_until: Int32[Array, "B S"],
    window: Window | None,
    lists: _Lists,
    kernel: Kernel,
    interpret: Interpret,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K R n 1 Q"]]:
    """Return the output, float32 where the keys are a stretch, and log-sum-exp.

    `visible_until` and the last positions of `window` are those of the keys.
    """
    specs = _Specs(kernel)
    call = pl.pallas_call(
        functools.partial(_forward.kernel, kernel=kernel, head_axis=specs.head_axis),
        grid=specs.grid,
        in_specs=[specs.blocks, specs.counts, specs.queries, specs.keys, specs.keys, specs.until, specs.window],
        out_specs=[specs.queries, specs.statistics],
        out_shape=[specs.of_queries(_partial(kernel)), specs.of_statistics()],
        scratch_shapes=_forward.scratch(kernel),
        compiler_params=specs.params(),
        cost_estimate=specs.cost(products=2),
        name="three_way_attention_forward",
        interpret=interpret,
    )
    out, lse = call(*lists, q, k, v, specs.rows(visible_until), specs.windows(window))
    return out, lse


def backward(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B K S H"],
    v: Float[Array, "B K S H"],
    visible_until: Int32[Array, "B S"],
    window: Window | None,
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
        functools.partial(_backward.kernel, kernel=kernel, head_axis=specs.head_axis),
        grid=specs.grid,
        in_specs=[
            *(specs.blocks, specs.counts, specs.queries, specs.keys, specs.keys),
            *(specs.queries, specs.until, specs.window, specs.statistics, specs.statistics),
        ],
        out_specs=[specs.queries, specs.keys, specs.keys],
        out_shape=[specs.of_queries(_partial(kernel)), specs.of_keys(), specs.of_keys()],
        scratch_shapes=_backward.scratch(kernel),
        compiler_params=specs.params(),
        cost_estimate=specs.cost(products=5),
        name="three_way_attention_backward",
        interpret=interpret,
    )
    of_window = specs.windows(window)
    d_q, d_k, d_v = call(*lists, q, k, v, d_out, specs.rows(visible_until), of_window, lse, delta)
    return d_q, d_k, d_v


def _partial(kernel: Kernel) -> Any:
    """Return the dtype of results: float32 where stretches still have to be added up."""
    return jnp.float32 if kernel.stretch else kernel.shape.dtype


class _Specs:
    """Blocks and shapes of the arguments of a call."""

    def __init__(self, kernel: Kernel) -> None:
        shape, queries = kernel.shape, kernel.tiles.queries
        self._kernel, self._n = kernel, shape.tokens // queries
        self._parts = parts_of(shape.batch, shape.kv_heads, device.cores())
        own = shape.kv_heads // self._parts
        self.grid = (shape.batch, own, self._n) if self._parts == 1 else (self._parts, shape.batch, own, self._n)
        smem = functools.partial(Spec, index_map=self._at(lambda b, n, i: (b, zero(), zero())), memory_space=pltpu.SMEM)
        self.blocks = smem((1, self._n, shape.key_blocks + kernel.wide))
        self.counts = smem((1, 5, self._n))
        self.queries = Spec((1, shape.group, queries, shape.width), self._at(lambda b, n, i: (b, n, i, zero())))
        rows = Rows(shape.group, shape.width, jnp.dtype(shape.dtype).itemsize, kernel.tiles, kernel.windowed)
        two = backward_bytes(rows, shape.keys, buffers=2, stretch=kernel.stretch)
        # Two buffers fetch the next row's keys while this one's are used; where VMEM is small, one must do. The count
        # can be 2 % short, and a fetch that is waited for is better than a call that is refused.
        buffers = 2 if two <= device.vmem_bytes() * 15 // 16 else 1
        self.vmem = device.vmem_asked(backward_bytes(rows, shape.keys, buffers=buffers, stretch=kernel.stretch))
        self.keys = Spec(
            (1, 1, shape.keys, shape.width),
            self._at(lambda b, n, i: (b, n, zero(), zero())),
            pipeline_mode=pl.Buffered(buffers),
        )
        self.until = Spec((1, shape.key_blocks, 1, KEYS), self._at(lambda b, n, i: (b, zero(), zero(), zero())))
        positions: Any = Spec((1, queries // KEYS, 1, KEYS), self._at(lambda b, n, i: (b, i, zero(), zero())))
        last: Any = self.until
        self.window = Window(positions, last) if kernel.windowed else None
        self.statistics = Spec(
            (1, 1, shape.group, 1, 1, queries), self._at(lambda b, n, i: (b, n, zero(), i, zero(), zero()))
        )

    @property
    def head_axis(self) -> int:
        """Axis of the grid that goes over key/value heads; that of blocks of queries follows."""
        return len(self.grid) - 2

    def _at(self, index: Callable[[Any, Any, Any], tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """Return an index map over the grid from one over row, key/value head and block of queries."""
        if self._parts == 1:
            return index
        own = self._kernel.shape.kv_heads // self._parts
        return lambda part, b, h, i: index(b, part * own + h, i)

    def params(self) -> pltpu.CompilerParams:
        others: list[Literal["arbitrary"]] = ["arbitrary"] * (len(self.grid) - 1)
        return pltpu.CompilerParams(dimension_semantics=("parallel", *others), vmem_limit_bytes=self.vmem)

    def rows(self, visible_until: Array) -> Array:
        return visible_until.reshape(self._kernel.shape.batch, -1, 1, KEYS)

    def windows(self, window: Window | None) -> Window | None:
        return None if window is None else Window(*map(self.rows, window))

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
        s, most = self._kernel.shape, self._kernel.window
        pairs = s.batch * s.kv_heads * s.group * s.tokens * min(s.keys // 2, most or s.keys)
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


def parts_of(rows: int, kv_heads: int, cores: int) -> int:
    """Return the equal parts of a row's key/value heads with which all cores have work, as even as heads allow.

    Example:
      >>> parts_of(4, 8, cores=2), parts_of(1, 8, cores=2), parts_of(1, 3, cores=2), parts_of(1, 8, cores=1)
      (1, 2, 3, 1)
    """
    even = (parts for parts in range(1, kv_heads + 1) if kv_heads % parts == 0 and rows * parts % cores == 0)
    return next(even, kv_heads)
