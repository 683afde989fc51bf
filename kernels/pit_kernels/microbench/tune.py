"""Finds the tiles of our kernels by steps from those they have, and keeps them in their committed tables.

A class of shapes is judged on the problems of its shape, forward and backward together. The clock is the static
estimate for a TPU that is not there, or the device's own where one is attached.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from pit_kernels import device
from pit_kernels.gap_reward import tiles as gap_tiles
from pit_kernels.microbench.problems import Job, class_problem, program
from pit_kernels.microbench.suite import ask_worker
from pit_kernels.microbench.timing import compiled, measure
from pit_kernels.microbench.worker import named_contender, named_problem
from pit_kernels.three_way_attention import tiles as attention_tiles
from pit_kernels.token_logprob import tiles as logprob_tiles
from pit_kernels.workloads import HEAD_SHAPES

AnyTiles = Any
"""A tile dataclass of an operation."""

Clock = Callable[[AnyTiles], float]
"""Microseconds with such tiles; raises ValueError where they give none."""

STEPS: dict[str, Mapping[str, Sequence[Callable[[int], int]]]] = {
    "three_way_attention": {
        "queries": (lambda n: n // 2, lambda n: 2 * n),
        "keys": (lambda n: n // 2, lambda n: 2 * n),
        "unroll": (lambda n: n - 1, lambda n: n + 1),
        "masked": (lambda n: n - 1, lambda n: n + 1),
        "short": (lambda n: n - 2, lambda n: n + 2),
    },
    "token_logprob": {
        name: (lambda n: n // 2, lambda n: 2 * n)
        for name in ("rows", "row_tile", "vocab_tile", "grad_rows", "grad_row_tile", "grad_vocab_tile")
    },
    "gap_reward": {
        "block": (lambda n: 2 * n,),
        "group": (lambda n: n // 2, lambda n: 2 * n),
        "tokens": (lambda n: n // 2, lambda n: 2 * n, lambda n: 4 * n),
    },
}
"""By operation and size, the steps that a sweep takes from the tiles it starts with, one size at a time."""


WORTH_IT = 0.005
"""Least share of the present tiles' time that others must save: less than that follows from the problem at hand."""


@dataclass(frozen=True)
class Tuned:
    """The outcome of a sweep.

    best: the tiles that take the least time, or the first where the others save too little.
    us: estimate of every candidate in their order; None where it cannot be compiled or counted.
    why: the reason for each None.
    """

    best: AnyTiles
    us: list[float | None]
    why: list[str]


def tiles_file(operation: str) -> Path:
    """Return the file with the best tiles of an operation, by kind of device and class of shapes."""
    return Path(__file__).parents[1] / operation / "tiles.json"


def shape_classes(operation: str, target: str = "v5e") -> dict[str, tuple[str, ...]]:
    """Return the classes of shapes that an operation is tuned for, each with the problems that it is judged on.

    The small VMEM of v4 cuts rows of 4,096 tokens of some shapes into stretches: it is judged on rows of 2,048.

    Raises:
      ValueError: if the operation has no tiles.

    Example:
      >>> shape_classes("three_way_attention")["r4-h128-b2"]
      ('class:r4-h128-b2/packed-4096+rollout-4096',)
    """
    if operation == "three_way_attention":
        layouts = "packed-2048" if target == "v4" else "packed-4096+rollout-4096"
        names = [attention_tiles.shape_class(s.heads // s.kv_heads, s.head_dim, 2) for s in HEAD_SHAPES]
        return {name: (f"class:{name}/{layouts}",) for name in names}
    if operation == "token_logprob":
        return {name: (f"class:{name}",) for name in _wide(logprob_tiles.WIDTHS)}
    if operation == "gap_reward":
        return {name: (f"class:{name}",) for name in _wide(gap_tiles.WIDTHS)}
    raise ValueError(f"op is {operation!r}; it must be one of {', '.join(STEPS)}")


def _wide(widths: Sequence[int]) -> list[str]:
    return [f"{dtype}-{width}" for dtype in ("bfloat16", "float32") for width in widths]


def present(operation: str, target: str, shape_class: str) -> AnyTiles:
    """Return the tiles that a class has on a kind of TPU, by the table or by the operation's own rule.

    Raises:
      ValueError: if it has none.
    """
    kind = AbstractDevice(device.device_kind(target), num_cores=None, platform="tpu")
    with use_abstract_mesh(AbstractMesh((1,), ("core",), abstract_device=kind)):
        if operation == "three_way_attention":
            group, width, itemsize = (int(part[1:]) for part in shape_class.split("-"))
            return attention_tiles.default_tiles(4096, group, width, itemsize)
        problem = class_problem(operation, shape_class)
        width, dtype = (problem.sizes or {})["D"], np.dtype(jnp.dtype(problem.dtype))
        tiles = (
            logprob_tiles.default(width, dtype)
            if operation == "token_logprob"
            else gap_tiles.default_tiles(width, dtype)
        )
    if tiles is None:
        raise ValueError(f"{operation} has no tiles for {shape_class} on {target}; write some to start from")
    return tiles


def candidates(operation: str, start: AnyTiles) -> list[AnyTiles]:
    """Return the tiles to start with, and those that differ in one size."""
    choices = [start]
    for name, steps in STEPS[operation].items():
        for step in steps:
            # A size that the rule of the tiles refuses is not a candidate.
            try:
                choices.append(replace(start, **{name: step(getattr(start, name))}))
            except ValueError:
                continue
    return list(dict.fromkeys(choices))


def static_clock(operation: str, target: str, names: Sequence[str]) -> Clock:
    """Estimate forward and backward of problems, added up, with the real compiler."""

    def us(tiles: AnyTiles) -> float:
        jobs = [Job(name, "both", asdict(tiles)) for name in names]
        answers = ask_worker(named_contender(operation, "pallas_tpu"), target, jobs)
        for answer in answers:
            if not answer.get("complete"):
                raise ValueError(answer.get("error") or "; ".join(answer.get("notes", ["no figure"])))
        return sum(float(answer["us"]) for answer in answers)

    return us


def timed_clock(operation: str, names: Sequence[str], rounds: int = 20) -> Clock:
    """Time forward and backward of problems on the attached device, medians added up."""
    contender = named_contender(operation, "pallas_tpu")

    def us(tiles: AnyTiles) -> float:
        calls = {
            name: compiled(*program(named_problem(operation, name, None), contender, Job(name, "both", asdict(tiles))))
            for name in names
        }
        seconds, _ = measure(calls, rounds)
        return sum(float(np.median(seconds[name])) for name in names) * 1e6

    return us


def tune(choices: Sequence[AnyTiles], clock: Clock, tell: Callable[[str], None] = lambda line: None) -> Tuned:
    """Try every candidate and return the best.

    Args:
      choices: tile dataclasses of the operation, the present one first; it stays unless another saves `WORTH_IT`.
      clock: microseconds of a candidate.
      tell: called with each candidate and its time.

    Raises:
      ValueError: if no candidate works; the message gives the first reason.
    """
    us: list[float | None] = []
    why = []
    for tiles in choices:
        # A candidate that the compiler refuses (no room in VMEM) is left out.
        try:
            us.append(clock(tiles))
            tell(f"{us[-1]:,.1f} us  {tiles}")
        except (ValueError, RuntimeError) as error:
            us.append(None)
            why.append(f"{tiles}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")
            tell(f"no figure  {why[-1]}")
    known = [(time, number) for number, time in enumerate(us) if time is not None]
    if not known:
        raise ValueError(f"none of {len(choices)} candidates works: {why[0] if why else 'there is no candidate'}")
    least, best = min(known)
    present = us[0]
    stays = present is not None and least > present * (1 - WORTH_IT)
    return Tuned(choices[0 if stays else best], us, why)


def keep(target: str, shape_class: str, best: AnyTiles, path: Path) -> None:
    """Write the best tiles into a table, in the place of earlier ones for the same device and shapes."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept.setdefault(target, {})[shape_class] = asdict(best)
    path.write_text(_text(kept), encoding="utf-8")


def _text(table: Mapping[str, Any]) -> str:
    """Return the table as JSON, one line per class of shapes."""
    kinds = []
    for target, classes in sorted(table.items()):
        lines = ",\n".join(f'    "{name}": {json.dumps(sizes)}' for name, sizes in sorted(classes.items()))
        kinds.append(f'  "{target}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(kinds) + "\n}\n"
