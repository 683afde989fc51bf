"""Verdict on a stage: whether it fits a chip, and which single settings would make it fit.

A remedy's memory is computed from shapes where a setting moves known arrays, and is marked as the best case where it
rests on temporaries shrinking with the rows.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pit.plan.account import bytes_on_chip
from pit.plan.compiling import Row, StagePlan
from pit.plan.programs import Setting
from pit.plan.target import GIB, Target

MOST_TIMES = 64
"""Most times that a remedy multiplies an axis of the mesh."""


class Remedy(NamedTuple):
    """A change of one setting.

    setting: what to set. peak: bytes on a chip then. fits: whether they fit. note: what the figure rests on.
    """

    setting: str
    peak: float
    fits: bool
    note: str


class Verdict(NamedTuple):
    """Verdict on a stage.

    fits: whether its programs fit. spare: share of a chip's memory that is left; negative where it lacks.
    remedies: changes that help, for a stage that does not fit.
    """

    fits: bool
    spare: float
    remedies: list[Remedy]

    def text(self, target: Target) -> str:
        """Return the verdict as one line."""
        size = f"{target.generation.hbm_gib:g} GiB"
        if self.fits:
            return f"fits in {size} with {self.spare:.0%} to spare"
        helping = [f"{each.setting} ({each.peak / GIB:.1f} GiB, {each.note})" for each in self.remedies if each.fits]
        if helping:
            return f"does not fit in {size}; one of these would make it fit: {'; '.join(helping)}"
        nearest = min(self.remedies, key=lambda each: each.peak, default=None)
        rest = f"; nearest: {nearest.setting} ({nearest.peak / GIB:.1f} GiB, {nearest.note})" if nearest else ""
        return f"does not fit in {size}, and no single setting tried makes it fit{rest}"


def verdict(plan: StagePlan, setting: Setting, target: Target) -> Verdict:
    """Return the verdict on a stage."""
    limit = target.hbm_bytes
    fits = plan.peak <= limit and not any(row.account.refused for row in plan.rows)
    remedies = [] if fits else [each for make in REMEDIES for each in make(plan, setting, limit)]
    return Verdict(fits, 1 - plan.peak / limit, remedies)


def _over_axis(axis: str) -> "Callable[[StagePlan, Setting, float], Iterator[Remedy]]":
    """Return the remedy that splits weights and their states over more chips along one axis."""

    def remedy(plan: StagePlan, setting: Setting, limit: float) -> Iterator[Remedy]:
        size, times = setting.mesh.shape[axis], 2
        while True:
            peak = max(row.peak - _split_bytes(row, axis) * (1 - 1 / times) for row in plan.rows) + plan.code
            if peak <= limit or times >= MOST_TIMES:
                break
            times *= 2
        chips = setting.mesh.size * times
        yield Remedy(f"mesh.{axis}={size * times}", peak, peak <= limit, f"on {chips} chips; temporaries as here")

    return remedy


def _split_bytes(row: Row, axis: str) -> int:
    """Return the bytes of arrays outside the program's temporaries that an axis of the mesh splits, rows apart."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves((row.placed.alive, row.placed.program.arguments))}
    return sum(bytes_on_chip(leaf) for leaf in leaves.values() if leaf.sharding is not None and _splits(leaf, axis))


def _splits(leaf: Any, axis: str) -> bool:
    # Rows lie over a pair of axes, and go on doing so: a shard has as many as before.
    return any(entry == axis for entry in leaf.sharding.spec)


def _fewer_rows(plan: StagePlan, setting: Setting, limit: float) -> Iterator[Remedy]:
    rows, worst = plan.stage.settings(setting.config).packing.rows, plan.worst
    fixed, temporaries = plan.peak - worst.account.temporaries, worst.account.temporaries
    if rows > 1 and temporaries:
        fewer = max(1, min(rows - 1, int(rows * (limit - fixed) / temporaries)))
        peak = fixed + temporaries * fewer / rows
        setting_name = f"{plan.stage.section}.packing.rows={fewer}"
        yield Remedy(setting_name, peak, peak <= limit, "at best: if temporaries shrink with the rows")


def _adapters(plan: StagePlan, setting: Setting, limit: float) -> Iterator[Remedy]:
    if plan.stage.adapter(setting.config) is not None:
        return
    trained = setting.model(plan.stage).params.values()
    weights = sum(map(bytes_on_chip, trained))  # type: ignore[arg-type]
    # Weights, gradient and two moments give way to weights of two bytes; the adapters' own are too few to count.
    saved = 4 * weights - weights * jnp.dtype(jnp.bfloat16).itemsize // jnp.dtype(jnp.float32).itemsize
    peak = plan.peak - saved
    yield Remedy(
        f"{plan.stage.section}.adapter.rank=16 --set base.dtype=bfloat16", peak, peak <= limit, "adapters not counted"
    )


def _recomputation(plan: StagePlan, setting: Setting, limit: float) -> Iterator[Remedy]:
    shape = plan.stage.trains.config(setting.config)
    if shape.remat == "full" or not plan.worst.name.startswith("gradient"):
        return
    packing = plan.stage.settings(setting.config).packing
    tokens = packing.rows * packing.row_length
    kept = shape.layers * tokens * shape.width * jnp.dtype(shape.compute_dtype).itemsize
    peak = plan.peak - max(0, plan.worst.account.temporaries - kept)
    name = f"{plan.stage.trains.shape}.remat=full"
    yield Remedy(name, peak, peak <= limit, f"at best: of temporaries only {kept / GIB:.2f} GiB of layers' inputs stay")


REMEDIES = (_over_axis("fsdp"), _over_axis("tensor"), _fewer_rows, _recomputation, _adapters)
"""Makers of remedies, each of one setting."""
