"""The work that is measured: each problem gives a function and its arguments for a contender."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels.microbench.contenders import Contender, Tiles
from pit_kernels.workloads import WORKLOADS, Workload, forest, pack_sequences, path_lengths, visible_until

Direction = Literal["forward", "both"]
"""What is called: the operation, or the operation with its gradients."""

SEED = 0
"""Seed of the drawn lengths."""

PEER_ROWS = (1024, 2048, 4096)
"""Row lengths that separate paths are packed into; the best counts."""

MODEL = "llama-3-8b"
"""The heads that attention is measured with: N=32, K=8, H=128."""


@dataclass(frozen=True)
class Problem:
    """One piece of work.

    name: as it is asked for and printed.
    operation: which operation.
    what: one line for the table.
    workload: of attention.
    sizes: of the other operations, by letter.
    fixed_tiles: whether contenders keep their first tiles, so that their hot pieces do the same work.
    """

    name: str
    operation: str
    what: str
    workload: Workload | None = None
    sizes: Mapping[str, int] | None = None
    fixed_tiles: bool = False

    @property
    def units(self) -> int:
        """Trees in the work, what a cost is shared among."""
        return 1 if self.workload is None else sum(map(len, forest(self.workload, SEED)))

    @property
    def has_trees(self) -> bool:
        """Whether a tree of the work has more than one path, so that a contender without trees needs more rows."""
        return self.workload is not None and len(set(path_parents(self.workload))) < len(path_parents(self.workload))


def path_parents(workload: Workload) -> list[int]:
    """Parents of the segments that are not roots: one that comes twice makes a tree of a path."""
    return [parent for parent in workload.layout.parents if parent >= 0]


@dataclass(frozen=True)
class Job:
    """One program to compile and count or time.

    row_length: tokens of the rows that separate paths are packed into; None for the problem's own rows.
    """

    problem: str
    direction: Direction
    tiles: Tiles | None = None
    row_length: int | None = None


def problems(operation: str) -> dict[str, Problem]:
    """The problems of an operation by name.

    Raises:
      ValueError: if it has none.
    """
    if operation == "three_way_attention":
        whats = {
            "classic-1536": "16 rows of three slots of 512, filled 200 + 100 + 100",
            "packed-2048": "8 rows of packed gap trees, lengths as in HH-RLHF",
            "packed-4096": "4 rows of packed gap trees, lengths as in HH-RLHF",
            "rollout-4096": "4 rows of trees with 16 samples each",
            "causal-4096": "4 rows of one plain causal sequence",
        }
        found = {workload.layout.name: workload for workload in WORKLOADS if workload.name.startswith(f"{MODEL}/")}
        rest = {name: Problem(name, operation, what, found[name]) for name, what in whats.items()}
        tile = Workload("tile-512", replace(found["causal-4096"].layout, batch=1), 2, 2, found["causal-4096"].head_dim)
        what = "one causal row in two heads, for the length of the hot 512 x 512 tile"
        return {"tile-512": Problem("tile-512", operation, what, tile, fixed_tiles=True), **rest}
    if operation == "token_logprob":
        sizes = {"M": 16384, "D": 2304, "V": 256000}
        what = "16,384 tokens, width 2,304, vocabulary 256,000, a tied bfloat16 table"
        return {"gemma-2-2b": Problem("gemma-2-2b", operation, what, sizes=sizes)}
    if operation == "gap_reward":
        sizes = {"B": 8, "T": 2048, "D": 2304, "G": 128, "L": 4}
        return {
            "gemma-2-2b": Problem("gemma-2-2b", operation, "512 leaves of 8 rows of 2,048, width 2,304", sizes=sizes)
        }
    raise ValueError(f"op is {operation!r}; it must be one of three_way_attention, token_logprob, gap_reward")


def program(problem: Problem, contender: Contender, job: Job) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function to call and its arguments: arrays where they steer, shapes elsewhere."""
    function = contender.make(job.tiles, False)
    if problem.operation == "three_way_attention":
        return _attention(problem, contender, job, function)
    if problem.operation == "token_logprob":
        return _logprob(problem, contender, job, function)
    return _scores(problem, job, function)


def rows(problem: Problem, contender: Contender, job: Job) -> np.ndarray:
    """`visible_until` of the rows that a contender is given: trees, or their paths apart."""
    if problem.workload is None:
        raise ValueError(f"{problem.name} has no rows: it is no problem of attention")
    if not problem.has_trees or contender.packs_trees:
        return visible_until(problem.workload, SEED)
    return pack_sequences(path_lengths(problem.workload, SEED), job.row_length or PEER_ROWS[-1])


def _attention(
    problem: Problem, contender: Contender, job: Job, function: Callable[..., Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    until = rows(problem, contender, job)
    workload = problem.workload
    assert workload is not None
    batch, tokens = until.shape

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        middle = (tokens, heads) if contender.axes == "BTNH" else (heads, tokens)
        return jax.ShapeDtypeStruct((batch, *middle, workload.head_dim), jnp.bfloat16)

    q, kv = shape(workload.heads), shape(workload.kv_heads)
    if job.direction == "forward":
        return function, (q, kv, kv, until)

    def both(q: Any, k: Any, v: Any, until: Any, d_out: Any) -> Any:
        out, pull = jax.vjp(lambda *qkv: function(*qkv, until), q, k, v)
        return out, *pull(d_out)

    return both, (q, kv, kv, until, q)


def _logprob(
    problem: Problem, contender: Contender, job: Job, function: Callable[..., Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    sizes = problem.sizes or {}
    hidden = jax.ShapeDtypeStruct((sizes["M"], sizes["D"]), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((sizes["V"], sizes["D"]), jnp.bfloat16)
    target = jax.ShapeDtypeStruct((sizes["M"],), jnp.int32)

    def total(hidden: Any, weight: Any, target: Any) -> Any:
        found = function(hidden, weight, target)
        return jnp.sum(found[0] if isinstance(found, tuple) else found)

    if job.direction == "forward":
        return total, (hidden, weight, target)
    return jax.value_and_grad(total, (0, 1)), (hidden, weight, target)


def _scores(problem: Problem, job: Job, function: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    sizes = problem.sizes or {}
    vector = jax.ShapeDtypeStruct((sizes["D"],), jnp.bfloat16)
    hidden = jax.ShapeDtypeStruct((sizes["B"], sizes["T"], sizes["D"]), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((), jnp.bfloat16)
    rng = np.random.default_rng(SEED)
    leaf = np.stack(
        [
            rng.integers(0, sizes["B"], (sizes["G"], sizes["L"])),
            rng.integers(0, sizes["T"], (sizes["G"], sizes["L"])),
        ],
        axis=-1,
    ).astype(np.int32)
    arguments = (hidden, vector, vector, bias, leaf)
    if job.direction == "forward":
        return function, arguments
    score = jax.ShapeDtypeStruct((sizes["G"], sizes["L"]), jnp.float32)
    return functools.partial(_pulled, function), (*arguments, score)


def _pulled(function: Callable[..., Any], *arguments: Any) -> Any:
    *floats, leaf, cotangent = arguments
    scores, pull = jax.vjp(lambda *floats: function(*floats, leaf), *floats)
    return scores, *pull(cotangent.astype(scores.dtype))
