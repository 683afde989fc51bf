"""Counts the GPU kernels of a call without a GPU: resources by ptxas, FLOP and bytes by the lists of tiles.

These figures bound and compare; none of them is a time.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels import gpu
from pit_kernels.cached_attention import triton_gpu as cached
from pit_kernels.cached_attention.settings import Settings as CachedSettings
from pit_kernels.microbench import ptx
from pit_kernels.microbench.problems import SEED, problems
from pit_kernels.partition import WHOLE
from pit_kernels.three_way_attention import triton_gpu as attention
from pit_kernels.three_way_attention.settings import Settings as AttentionSettings
from pit_kernels.three_way_attention.tile_lists import tile_lists
from pit_kernels.token_logprob import triton_gpu as logprob
from pit_kernels.token_logprob.settings import RowGradients
from pit_kernels.token_logprob.settings import Settings as LogprobSettings
from pit_kernels.triton_call import Launch
from pit_kernels.workloads import HEAD_SHAPES, HeadShape, visible_until

OPERATIONS = ("three_way_attention", "token_logprob", "cached_attention")
"""Operations with GPU kernels."""

DECODE = {"slots": 64, "prefixes": 4, "prefix": 1024, "suffix": 512}
"""Sizes of decode problems: slots that share prefixes, and tokens of each cache."""

CAPPED = {"gemma-2-2b": (50.0, 4096), "llama-3-8b": (None, 4096), "smollm2-135m": (50.0, 512)}
"""Soft cap and window of the variants whose machine code is held to ceilings besides the plain one."""

Struct = jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Case:
    """A problem for the kernels of an operation.

    function: makes the launches when it is traced with the arguments.
    visible_until: mask of the rows, of attention.
    """

    name: str
    operation: str
    function: Callable[..., Any] = field(repr=False)
    arguments: tuple[Any, ...] = field(repr=False)
    visible_until: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class KernelRow:
    """One line of the table.

    tile: sizes of a tile.
    machine: fields of `ptx.Machine`.
    gflop: FLOP of the products of all programs, in 1e9.
    least_mb: every array read or written once, in 1e6 bytes.
    loaded_mb: what all programs ask for, from L2 or memory, in 1e6 bytes.
    """

    operation: str
    problem: str
    kernel: str
    target: str
    tile: str
    warps: int
    stages: int
    programs: int
    machine: dict[str, Any]
    gflop: float
    least_mb: float
    loaded_mb: float

    @property
    def key(self) -> str:
        """Name of the row in a results file."""
        return "/".join((self.operation, self.problem, self.kernel, self.target))


def cases(operation: str) -> dict[str, Case]:
    """Return the problems of an operation by name.

    Raises:
      ValueError: if it has no GPU kernels.
    """
    if operation == "three_way_attention":
        workloads = {name: problem.workload for name, problem in problems(operation).items() if not problem.tells_tile}
        return {
            name: attention_case(name, visible_until(w, SEED), HeadShape("", w.heads, w.kv_heads, w.head_dim))
            for name, w in workloads.items()
            if w is not None
        }
    if operation == "token_logprob":
        return {name: logprob_case(name, dict(p.sizes or {})) for name, p in problems(operation).items()}
    if operation == "cached_attention":
        return {f"decode-{shape.model}": decode_case(f"decode-{shape.model}", shape) for shape in HEAD_SHAPES}
    raise ValueError(f"op is {operation!r}; it must be one of {', '.join(OPERATIONS)}: others have no GPU kernels")


def named_cases(operation: str, names: Sequence[str]) -> list[Case]:
    """Return the problems of these names, all of the operation for none; "ceilings" stands for its `ceilings`.

    Raises:
      ValueError: if the operation has no such problem.
    """
    known = cases(operation)
    chosen: list[Case] = []
    for name in names or known:
        if name == "ceilings":
            chosen += [case for case in ceilings() if case.operation == operation]
        elif name in known:
            chosen.append(known[name])
        else:
            listed = ", ".join((*known, "ceilings"))
            raise ValueError(f"--workload is {name!r}; for {operation} on GPUs it must be one of {listed}")
    return chosen


def ceilings() -> list[Case]:
    """Return the cases whose machine code is held to the committed figures: shapes, caps with windows, float32."""
    shapes = {shape.model: shape for shape in HEAD_SHAPES}
    until = np.full((1, 4096), 4096, np.int32)
    found = []
    for model, (soft_cap, window) in CAPPED.items():
        shape = shapes[model]
        found += [
            attention_case(f"{model}, bfloat16", until, shape),
            attention_case(f"{model}, capped or windowed, bfloat16", until, shape, soft_cap=soft_cap, window=window),
            attention_case(f"{model}, float32", until, shape, dtype=jnp.float32),
            decode_case(f"{model}, bfloat16", shape, soft_cap=soft_cap, window=window),
            decode_case(f"{model}, float32", shape, dtype=jnp.float32),
        ]
    sizes = {"M": 16384, "D": 2304, "V": 256000}
    found += [
        logprob_case("gemma-2-2b, bfloat16", sizes),
        logprob_case("gemma-2-2b, capped, [D, V], bfloat16", sizes, soft_cap=30.0, layout="dv"),
        logprob_case("gemma-2-2b, float32", sizes, dtype=jnp.float32),
    ]
    return found


def attention_case(
    name: str,
    until: np.ndarray,
    shape: HeadShape,
    *,
    dtype: Any = jnp.bfloat16,
    soft_cap: float | None = None,
    window: int | None = None,
) -> Case:
    """Return attention over rows with a mask, forward and backward."""
    batch, tokens = until.shape
    q = Struct((batch, tokens, shape.heads, shape.head_dim), dtype)
    k = Struct((batch, tokens, shape.kv_heads, shape.head_dim), dtype)
    row, statistics = Struct(until.shape, jnp.int32), Struct((batch, shape.heads, tokens), jnp.float32)
    settings = AttentionSettings(shape.head_dim**-0.5, soft_cap, window, None, False, WHOLE)

    def both(q: Any, k: Any, v: Any, row: Any, lse: Any, delta: Any, d_out: Any) -> Any:
        position = () if window is None else (row,)
        out = attention.forward(settings, q, k, v, row, *position)
        return out, attention.backward(settings, q, k, v, row, lse, delta, d_out, *position)

    return Case(name, "three_way_attention", both, (q, k, k, row, statistics, statistics, q), until)


def logprob_case(
    name: str, sizes: Mapping[str, int], *, dtype: Any = jnp.bfloat16, soft_cap: float | None = None, layout: str = "vd"
) -> Case:
    """Return log-probabilities of M rows of width D over V words, forward and backward."""
    rows, width, vocabulary = (sizes[letter] for letter in "MDV")
    settings = LogprobSettings("dv" if layout == "dv" else "vd", 1.0, soft_cap)
    table = (vocabulary, width) if layout == "vd" else (width, vocabulary)
    row = Struct((rows,), jnp.float32)

    def both(hidden: Any, weight: Any, target: Any, valid: Any, *of_rows: Any) -> Any:
        parts = logprob.forward(settings, hidden, weight, target, valid, None)
        lse, entropy, d_logp, d_lse = of_rows
        gradients = RowGradients(lse, entropy, d_logp, d_lse, None)
        return parts, logprob.backward(settings, hidden, weight, target, valid, None, gradients)

    target, valid = Struct((rows,), jnp.int32), Struct((rows,), jnp.bool_)
    return Case(
        name, "token_logprob", both, (Struct((rows, width), dtype), Struct(table, dtype), target, valid, *[row] * 4)
    )


def decode_case(
    name: str, shape: HeadShape, *, dtype: Any = jnp.bfloat16, soft_cap: float | None = None, window: int | None = None
) -> Case:
    """Return a step of decoding of `DECODE` sizes with full caches."""
    slots, prefixes = DECODE["slots"], DECODE["prefixes"]
    settings = CachedSettings(shape.head_dim**-0.5, soft_cap, window, slots // prefixes, WHOLE, False)
    prefix = Struct((prefixes, shape.kv_heads, DECODE["prefix"], shape.head_dim), dtype)
    suffix = Struct((slots, shape.kv_heads, DECODE["suffix"], shape.head_dim), dtype)
    of_slots, of_prefixes = Struct((slots,), jnp.int32), Struct((prefixes,), jnp.int32)

    def step(*arrays: Any) -> Any:
        return cached.BACKEND.forward(settings, *arrays)

    q = Struct((slots, shape.heads, shape.head_dim), dtype)
    arguments = (q, prefix, prefix, of_prefixes, suffix, suffix, of_slots, of_slots, of_slots)
    return Case(name, "cached_attention", step, arguments)


def count(case: Case, architecture: str) -> list[KernelRow]:
    """Return a row for each kernel of a case, compiled for an architecture."""
    launched = ptx.launches(case.function, case.arguments, architecture)
    rows: dict[str, KernelRow] = {}
    for launch in launched:
        flop, loaded = _cost(launch, case)
        least = sum(_bytes(x) for x in (*launch.inputs, *launch.outputs))
        name = launch.name.removesuffix("_kernel")
        if name in rows:
            # The same kernel over the suffixes and over the prefixes, or over what is left of a vocabulary.
            name = f"{name}-{sum(other.startswith(name) for other in rows) + 1}"
        rows[name] = KernelRow(
            case.operation,
            case.name,
            name,
            architecture,
            _tile(launch),
            launch.warps,
            launch.stages,
            int(np.prod(launch.grid)),
            ptx.compiled(launch, architecture).figures(),
            round(flop / 1e9, 3),
            round(least / 1e6, 3),
            round(loaded / 1e6, 3),
        )
    return list(rows.values())


def _bytes(x: Struct) -> int:
    size: int = math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    return size


def _tile(launch: Launch) -> str:
    names = ("QUERIES", "KEYS", "ENTRIES", "M", "V", "D")
    return " ".join(f"{name.lower()}={launch.constants[name]}" for name in names if name in launch.constants)


def _cost(launch: Launch, case: Case) -> tuple[float, float]:
    """Return FLOP of a launch's products, and the bytes that its programs ask for."""
    c, item = launch.constants, jnp.dtype(launch.inputs[0].dtype).itemsize
    own = sum(_bytes(x) for x in (launch.inputs[0], *launch.outputs))
    if case.operation == "three_way_attention":
        tiles = _visited(case, c["QUERIES"], c["KEYS"], c["WINDOW"] or None) * c["HEADS"]
        # Products of a tile, and arrays of the other side that it reads: keys and values, or queries and d out.
        products = {"forward_kernel": 2, "query_gradient_kernel": 3, "key_gradient_kernel": 4}[launch.name]
        other = c["QUERIES"] if launch.name == "key_gradient_kernel" else c["KEYS"]
        flop = 2.0 * products * tiles * c["QUERIES"] * c["KEYS"] * c["W"]
        return flop, own + 2.0 * tiles * other * c["WIDTH"] * item
    if case.operation == "token_logprob":
        words = c.get("WORDS", c["VOCABULARY"])
        row_tiles, word_tiles = -(-c["ROWS"] // c["M"]), -(-words // c["V"])
        flop = 2.0 * row_tiles * c["M"] * word_tiles * c["V"] * c["WIDTH"]
        return flop, own + 1.0 * row_tiles * word_tiles * (c["M"] + c["V"]) * c["WIDTH"] * item
    row_tiles = launch.grid[0] * launch.grid[1]
    flop = 4.0 * row_tiles * c["QUERIES"] * c["CAPACITY"] * c["W"]
    return flop, own + 2.0 * row_tiles * c["CAPACITY"] * c["WIDTH"] * item


def _visited(case: Case, queries: int, keys: int, window: int | None) -> int:
    """Return the tiles with a visible pair, of all rows of a mask."""
    assert case.visible_until is not None, "attention has a mask"
    ends = ((0, 0), (0, -case.visible_until.shape[1] % max(queries, keys)))
    until = jnp.asarray(np.pad(case.visible_until, ends))
    # Without a window nothing is read of the positions; a window takes those of a row of one sequence.
    position = jnp.broadcast_to(jnp.arange(until.shape[1], dtype=jnp.int32)[None], until.shape)
    of_queries, _ = tile_lists(until, position, window, queries, keys)
    return int(of_queries.number.sum())


def worse(rows: Sequence[KernelRow], path: Path) -> list[str]:
    """Return a line for each kernel that spills, takes too much shared memory, or more than its committed row.

    Args:
      rows: rows to judge.
      path: results file, as `save` wrote it; see `uncommitted` for kernels without a row in it.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for row in rows:
        room = gpu.shared_bytes(row.target)
        if row.machine["spill_bytes"]:
            lines.append(f"{row.key}: spills {row.machine['spill_bytes']} bytes; it must spill none")
        if row.machine["shared_bytes"] > room:
            lines.append(f"{row.key}: takes {row.machine['shared_bytes']} bytes of shared memory of {room}")
        before = kept.get(row.key, {"machine": row.machine})["machine"]
        for name in ("registers", "shared_bytes"):
            if row.machine[name] > before[name]:
                lines.append(f"{row.key}: {name} is {row.machine[name]}, and was {before[name]}")
        if row.machine["matrix"] != before["matrix"]:
            lines.append(f"{row.key}: multiplies by {row.machine['matrix']}, and did by {before['matrix']}")
    return lines


def uncommitted(rows: Sequence[KernelRow], path: Path) -> list[str]:
    """Return the names of the kernels that have no row in a results file."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    return [row.key for row in rows if row.key not in kept]


def load(path: Path) -> list[KernelRow]:
    """Return the rows of a results file; none where there is no file."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return [KernelRow(**row) for row in kept.values()]


def save(rows: Sequence[KernelRow], path: Path) -> None:
    """Write rows into a results file, in the place of rows of the same name; other rows stay."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept |= {row.key: asdict(row) for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
