"""A plan as tables for a terminal, as JSON, and as a plot."""

import io
import json
import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from pit.atomic import write_file
from pit.compiler import TPU_FLAGS
from pit.plan.compiling import Row, StagePlan
from pit.plan.programs import Setting
from pit.plan.target import GIB, Target
from pit.plan.verdict import Verdict

FORMAT = 1
"""Format of the JSON file; it grows when a field changes its meaning or goes."""


def program_table(plan: StagePlan, target: Target) -> Table:
    """Return the programs of a stage: memory, network and least time of each, on one chip."""
    columns = ("program", "in and out", "temporary", "beside", "peak", "sent", "at least")
    table = Table(*columns, title=f"{plan.stage.name}: per chip of {target.name}", box=box.SIMPLE_HEAD)
    for row in plan.rows:
        account = row.account
        if account.refused:
            table.add_row(row.name, "", f"> {_bytes(account.refused)}", "", "", "", "does not compile")
            continue
        seconds, bound = account.floor(target.generation)
        held = account.arguments + account.outputs - account.aliased
        sizes = map(_bytes, (held, account.temporaries, row.placed.beside_bytes, row.peak, account.sent_bytes))
        table.add_row(row.name, *sizes, f"{_seconds(seconds)}, {bound}")
    equal = [f"{row.name} = {row.twin}" for row in plan.rows if row.twin]
    lines = [f"code of all programs {_bytes(plan.code)}", *([f"compiled before: {', '.join(equal)}"] if equal else [])]
    table.caption = "; ".join(lines)
    return table


def network_table(plan: StagePlan) -> Table | None:
    """Return the bytes of collectives by kind, loops counted with their trips; None where there is none."""
    kinds = sorted({kind for row in plan.rows for kind in row.account.by_kind()})
    if not kinds:
        return None
    table = Table("program", *kinds, title=f"{plan.stage.name}: collectives per chip", box=box.SIMPLE_HEAD)
    for row in plan.rows:
        totals = row.account.by_kind()
        table.add_row(row.name, *(_bytes(totals[kind]) if kind in totals else "" for kind in kinds))
    return table


def verdict_table(plans: Sequence[StagePlan], verdicts: Sequence[Verdict], target: Target) -> Table:
    """Return the peak and the verdict of each stage."""
    table = Table("stage", "peak", "during", "verdict", title=f"stages on {target.name}, per chip")
    for plan, verdict in zip(plans, verdicts, strict=True):
        table.add_row(plan.stage.name, _bytes(plan.peak), plan.worst.name, verdict.text(target))
    return table


def as_json(
    plans: Sequence[StagePlan], verdicts: Sequence[Verdict], setting: Setting, target: Target
) -> dict[str, Any]:
    """Return a plan as values for JSON; sizes are bytes per chip, times seconds."""
    generation = target.generation
    return {
        "format": FORMAT,
        "recipe": setting.config.name,
        "target": target.name,
        "mesh": {axis: int(size) for axis, size in setting.mesh.shape.items()},
        "chip": {
            "hbm_bytes": int(target.hbm_bytes),
            "peak_flops": generation.peak_flops,
            "hbm_bytes_per_s": generation.hbm_bytes_per_s,
            "network_bytes_per_s": generation.network_bytes_per_s,
        },
        "versions": {name: _version(name) for name in ("jax", "libtpu")},
        "flags": os.environ.get(TPU_FLAGS, ""),
        "stages": [_stage(plan, verdict, target) for plan, verdict in zip(plans, verdicts, strict=True)],
    }


def write_json(path: Path, values: dict[str, Any]) -> Path:
    """Write a plan, and return the path."""
    write_file(path, (json.dumps(values, indent=1) + "\n").encode())
    return path


def _stage(plan: StagePlan, verdict: Verdict, target: Target) -> dict[str, Any]:
    return {
        "name": plan.stage.name,
        "peak": plan.peak,
        "during": plan.worst.name,
        "code": plan.code,
        "fits": verdict.fits,
        "spare": round(verdict.spare, 4),
        "remedies": [each._asdict() | {"peak": int(each.peak)} for each in verdict.remedies],
        "programs": [_program(row, target) for row in plan.rows],
    }


def _program(row: Row, target: Target) -> dict[str, Any]:
    account, (seconds, bound) = row.account, row.account.floor(target.generation)
    return {
        "name": row.name,
        "same_as": row.twin or None,
        "refused": account.refused or None,
        "arguments": account.arguments,
        "outputs": account.outputs,
        "aliased": account.aliased,
        "temporaries": account.temporaries,
        "code": account.code,
        "beside": row.placed.beside_bytes,
        "peak": row.peak,
        "flops": account.flops,
        "hbm": account.hbm_bytes,
        "sent": account.sent_bytes,
        "collectives": account.by_kind(),
        "loop_steps": row.placed.program.loop_steps,
        "floor_s": seconds,
        "bound": bound,
        "compile_s": round(account.seconds, 1),
    }


PARTS = ("arguments", "results", "temporaries", "beside", "code")
_COLOURS = ("#4477aa", "#66ccee", "#ee6677", "#ccbb44", "#bbbbbb")


def plot(path: Path, plans: Sequence[StagePlan], target: Target) -> Path:
    """Write a plot of the memory of each stage at its peak, by parts, as PNG; return the path."""
    figure = Figure(figsize=(7.2, 1.2 + 0.45 * len(plans)), dpi=150, facecolor="white", layout="constrained")
    axes, left = figure.add_subplot(), [0.0] * len(plans)
    names = [f"{plan.stage.name}\n({plan.worst.name})" for plan in plans]
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        sizes = [_parts(plan)[part] / GIB for plan in plans]
        axes.barh(names, sizes, left=left, color=colour, label=part)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    axes.axvline(target.generation.hbm_gib, color="black", lw=1.2, ls=(0, (4, 3)))
    axes.invert_yaxis()
    axes.set_xlabel(f"GiB per chip of {target.name}; dashed: what programs may use")
    axes.legend(fontsize=7, ncols=len(PARTS), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.tick_params(labelsize=7)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_file(path, buffer.getvalue())
    return path


def _parts(plan: StagePlan) -> dict[str, int]:
    account = plan.worst.account
    if account.refused:
        sizes = (0, 0, account.refused, plan.worst.placed.beside_bytes, plan.code)
    else:
        results = account.outputs - account.aliased
        sizes = account.arguments, results, account.temporaries, plan.worst.placed.beside_bytes, plan.code
    return dict(zip(PARTS, sizes, strict=True))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _bytes(size: int | float) -> str:
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale / 4:
            return f"{size / scale:.2f} {unit}" if unit == "GiB" else f"{size / scale:.0f} {unit}"
    return f"{size:.0f} B"


def _seconds(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
