"""What each chip sends, holds and loads as a slice grows at a fixed number of tokens per chip: compiled, with no TPU.

    python bench/study_growth.py [--out bench/results/plan-growth.json] [--plot docs/guides/plan-growth.png]

The program is the gradient of a microbatch of R_PIT in the recipe `paper`: two rows of 4,096 tokens per shard, four
chips per shard. Up to 32 chips the weights are split further (fsdp 1, 4, 8); beyond, shards are added along `data`.
Of 26 layers 6 are compiled: a loop over layers has one body however many they are, and what it sends grows with its
trips. Each slice takes the compiler a minute or two. `table` makes the rows of docs/guides/plan.md from the file.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from _measure import keep, origin
from pit.config import override
from pit.plan.compiling import Lowered
from pit.plan.programs import Setting, programs_of
from pit.plan.target import find_target
from pit.recipes import recipe
from pit.stages import reward

MIB = 2**20

RESULTS = Path(__file__).parent / "results" / "plan-growth.json"

LAYERS = 6
"""Layers of the compiled model: three trips of a loop over a local and a global one."""

SLICES = {
    "v5e:2x2": (1, 1, 4),
    "v5e:4x4": (1, 4, 4),
    "v5e:4x8": (1, 8, 4),
    "v5e:8x8": (2, 8, 4),
    "v5e:8x16": (4, 8, 4),
    "v5e:16x16": (8, 8, 4),
    "v5p:4x4x4": (2, 8, 4),
    "v5p:8x8x8": (16, 8, 4),
    "v5p:16x16x16": (128, 8, 4),
}
"""Mesh data x fsdp x tensor of each slice."""


def measure(name: str) -> dict[str, Any]:
    """Return the account of the gradient's program on a slice."""
    axes = dict(zip(("data", "fsdp", "tensor"), SLICES[name], strict=True))
    depth = [f"{model}.layers={LAYERS}" for model in ("policy", "reward_model")]
    config = override(recipe("paper"), [*(f"mesh.{axis}={size}" for axis, size in axes.items()), *depth])
    target = find_target(name)
    setting = Setting.of(config, target.mesh(config.mesh), None)
    placed = next(each for each in programs_of(reward.GAP, setting) if each.program.name.startswith("gradient"))
    begin = time.perf_counter()
    account = Lowered(placed, setting).compile(len(target.devices))
    return {
        "slice": name,
        "chips": len(target.devices),
        "mesh": axes,
        "layers": LAYERS,
        "sent": account.sent_bytes,
        "collectives": account.by_kind(),
        "temporaries": account.temporaries,
        "outputs": account.outputs,
        "code": account.code,
        "refused": account.refused or None,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def table() -> list[str]:
    """Return a row of Markdown per committed slice."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return [_row(kept[name]) for name in SLICES if name in kept]


def _row(row: dict[str, Any]) -> str:
    mesh = " x ".join(str(row["mesh"][axis]) for axis in ("data", "fsdp", "tensor"))
    sizes = (f"{row[part] / MIB:,.0f}" for part in ("sent", "temporaries", "code"))
    return f"| `{row['slice']}` | {row['chips']:,} | {mesh} | {' | '.join(sizes)} |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what a chip sends and loads by the number of chips."""
    figure = Figure(figsize=(7.2, 3.0), dpi=150, facecolor="white", layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, part, label in zip(panels, ("sent", "code"), ("MiB sent per chip", "MiB of program"), strict=True):
        for generation, colour in (("v5e", "#4477aa"), ("v5p", "#ee6677")):
            of = [row for row in rows if row["slice"].startswith(generation) and not row["refused"]]
            sizes = [row[part] / MIB for row in of]
            axes.plot([row["chips"] for row in of], sizes, "o-", color=colour, label=generation)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("chips")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Compile for each slice in turn; a file of results keeps those of earlier calls, and the plot shows them too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", dest="slices", action="append", choices=SLICES, help="one slice; repeatable [all]")
    parser.add_argument("--out", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if options.out is not None and options.out.exists():
        rows = json.loads(options.out.read_text(encoding="utf-8"))
    for name in SLICES if options.slices is None else options.slices:
        row = measure(name)
        rows[name] = {**row, **origin(0, 1)}
        summary = f"{name}: {row['sent'] / MIB:,.0f} MiB sent per chip, {row['code'] / MIB:.0f} MiB of program"
        keep(options.out, {name: rows[name]}, summary)
    if options.plot is not None:
        draw([rows[name] for name in SLICES if name in rows], options.plot)


if __name__ == "__main__":
    main()
