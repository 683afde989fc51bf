"""The work that is measured: each problem gives a function and its arguments for a contender."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pit_kernels.microbench.contenders import Contender, Tiles
from pit_kernels.workloads import (
    HEAD_SHAPES,
    LAYOUTS,
    TILE_HEADS,
    TILE_LAYOUTS,
    WORKLOADS,
    Workload,
    forest,
    pack_sequences,
    path_lengths,
    visible_until,
)

Direction = Literal["forward", "both"]
"""What is called: the operation, or the operation with its gradients."""

SEED = 0
"""Seed of the drawn lengths."""

PEER_ROWS = (1024, 2048, 4096)
"""Row lengths that separate paths are packed into; the best counts."""

MODEL = "llama-3-8b"
"""The heads that attention is measured with where a problem names none: N=32, K=8, H=128."""

_ATTENTION = "three_way_attention"


@dataclass(frozen=True)
class Problem:
    """One piece of work.

    name: name in options and tables.
    operation: name of the operation.
    what: one line for the table.
    workload: rows of attention.
    sizes: sizes of the other operations, by letter.
    tells_tile: whether it is for the length of the hot 512 x 512 tile; the best tiles are those that make it shortest.
    dtype: dtype of the arrays.
    without_trees: rows that contenders without trees get instead; None for the separate paths, packed.
    others: workloads of the same heads and row length, whose rows come after those of `workload`.
    """

    name: str
    operation: str
    what: str
    workload: Workload | None = None
    sizes: Mapping[str, int] | None = None
    tells_tile: bool = False
    without_trees: Workload | None = None
    dtype: str = "bfloat16"
    others: tuple[Workload, ...] = ()

    @property
    def units(self) -> int:
        """Trees in the work; costs are divided by it."""
        if self.workload is None:
            return 1
        return sum(len(row) for workload in (self.workload, *self.others) for row in forest(workload, SEED))

    @property
    def has_trees(self) -> bool:
        """Whether a tree of the work has more than one path, so that a contender without trees gets them packed."""
        if self.workload is None or self.without_trees is not None:
            return False
        parents = path_parents(self.workload)
        return len(set(parents)) < len(parents)


def path_parents(workload: Workload) -> list[int]:
    """Return the parents of the segments that are not roots: a parent of two segments makes a tree of a path."""
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
    """Return the problems of an operation by name.

    Raises:
      ValueError: if it has none.
    """
    if operation == _ATTENTION:
        return {problem.name: problem for problem in (*_tile_problems(), *_row_problems())}
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


def class_problem(operation: str, name: str) -> Problem:
    """Return the problem on which the tiles of a class of shapes are judged.

    Args:
      operation: name of the operation.
      name: the class, such as "bfloat16-2304"; of attention with layouts, as "r4-h128-b2/packed-4096+rollout-4096": a
        row of each in one group of heads, because tiles know no more and a program takes a minute to compile and count.

    Raises:
      ValueError: if the operation has no such classes.
    """
    full = f"class:{name}"
    if operation == _ATTENTION:
        shape, _, layouts = name.partition("/")
        group, head = (int(part[1:]) for part in shape.split("-")[:2])
        known = {layout.name: replace(layout, batch=1) for layout in LAYOUTS}
        first, *others = (Workload(full, known[layout], group, 1, head) for layout in layouts.split("+"))
        what = f"a row of {layouts.replace('+', ' and one of ')}, {group} heads on one of width {head}"
        return Problem(full, operation, what, first, others=tuple(others))
    dtype, _, width = name.partition("-")
    if operation == "token_logprob":
        sizes = {"M": 8192, "D": int(width), "V": 32768}
        return Problem(full, operation, "8,192 tokens, vocabulary 32,768", sizes=sizes, dtype=dtype)
    if operation == "gap_reward":
        sizes = {"B": 8, "T": 2048, "D": int(width), "G": 128, "L": 4}
        return Problem(full, operation, "512 leaves of 8 rows of 2,048", sizes=sizes, dtype=dtype)
    raise ValueError(f"op is {operation!r}; it must be three_way_attention, token_logprob or gap_reward")


def _tile_problems() -> list[Problem]:
    """Return two problems for the length of the hot 512 x 512 tile; both have one row in two heads of width 128."""
    shape = TILE_HEADS[1:]
    full, partial, padded = (Workload(layout.name, layout, *shape) for layout in TILE_LAYOUTS)
    return [
        Problem(full.name, _ATTENTION, "one causal sequence: nearly every tile is wholly visible", full, None, True),
        Problem(
            partial.name,
            _ATTENTION,
            "no tile is wholly visible: ours gets a trunk with a leaf of one token off every 127 of its own, others "
            "one causal sequence with 4 tokens of padding, and its segment ids",
            partial,
            tells_tile=True,
            without_trees=padded,
        ),
    ]


def _row_problems() -> list[Problem]:
    """Return the packed rows of the shape that most is measured with, and one of them in the other shapes."""
    whats = {
        "classic-1536": "16 rows of three slots of 512, filled 200 + 100 + 100",
        "packed-2048": "8 rows of packed gap trees, lengths as in HH-RLHF",
        "packed-4096": "4 rows of packed gap trees, lengths as in HH-RLHF",
        "rollout-4096": "4 rows of trees with 16 samples each",
        "causal-4096": "4 rows of one plain causal sequence",
    }
    workloads = {workload.name: workload for workload in WORKLOADS}
    here = [Problem(name, _ATTENTION, what, workloads[f"{MODEL}/{name}"]) for name, what in whats.items()]
    for shape in HEAD_SHAPES:
        if shape.model == MODEL:
            continue
        heads = f"{shape.heads} heads on {shape.kv_heads} of width {shape.head_dim}"
        here += [
            Problem(f"{name}-{shape.model}", _ATTENTION, f"{whats[name]}; {heads}", workloads[f"{shape.model}/{name}"])
            for name in ("packed-2048", "packed-4096", "rollout-4096")
        ]
    return here


def program(problem: Problem, contender: Contender, job: Job) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the function to call and its arguments: arrays where they steer, shapes elsewhere."""
    function = contender.make(job.tiles, False)
    if problem.operation == _ATTENTION:
        return _attention(problem, contender, job, function)
    if problem.operation == "token_logprob":
        return _logprob(problem, contender, job, function)
    return _scores(problem, job, function)


def rows(problem: Problem, contender: Contender, job: Job) -> np.ndarray:
    """Return `visible_until` of the rows that a contender is given: trees, or the sequences in their place."""
    if problem.workload is None:
        raise ValueError(f"{problem.name} has no rows: it is not an attention problem")
    if contender.packs_trees or not problem.has_trees:
        instead = None if contender.packs_trees else problem.without_trees
        return np.concatenate(
            [visible_until(workload, SEED) for workload in (instead or problem.workload, *problem.others)]
        )
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
    if contender.plain_rows and (until == tokens).all():
        # Rows of one sequence need no segment ids, and a kernel that gets none takes its body without them.
        function = functools.partial(_without_ids, function)
    if job.direction == "forward":
        return function, (q, kv, kv, until)

    def both(q: Any, k: Any, v: Any, until: Any, d_out: Any) -> Any:
        out, pull = jax.vjp(lambda *qkv: function(*qkv, until), q, k, v)
        return out, *pull(d_out)

    return both, (q, kv, kv, until, q)


def _without_ids(function: Callable[..., Any], q: Any, k: Any, v: Any, until: Any) -> Any:
    return function(q, k, v, None)


def _logprob(
    problem: Problem, contender: Contender, job: Job, function: Callable[..., Any]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    sizes = problem.sizes or {}
    hidden = jax.ShapeDtypeStruct((sizes["M"], sizes["D"]), jnp.dtype(problem.dtype))
    weight = jax.ShapeDtypeStruct((sizes["V"], sizes["D"]), jnp.dtype(problem.dtype))
    target = jax.ShapeDtypeStruct((sizes["M"],), jnp.int32)

    def total(hidden: Any, weight: Any, target: Any) -> Any:
        result = function(hidden, weight, target)
        return jnp.sum(result[0] if isinstance(result, tuple) else result)

    if job.direction == "forward":
        return total, (hidden, weight, target)
    return jax.value_and_grad(total, (0, 1)), (hidden, weight, target)


def _scores(problem: Problem, job: Job, function: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    sizes = problem.sizes or {}
    dtype = jnp.dtype(problem.dtype)
    vector = jax.ShapeDtypeStruct((sizes["D"],), dtype)
    hidden = jax.ShapeDtypeStruct((sizes["B"], sizes["T"], sizes["D"]), dtype)
    bias = jax.ShapeDtypeStruct((), dtype)
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
