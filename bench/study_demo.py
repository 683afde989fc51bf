"""Whole demo runs: Delta of the improved answer with its interval, seconds per stage, peak memory.

    python bench/study_demo.py --seeds 0 1 2

Each seed is a `pit run demo` in a folder of its own with an empty compile cache, as a new user has it. A run takes
minutes, so `make bench` does not make it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _measure import commit
from pit.evaluate.schema import read_results

DELTAS = (
    "improved_over_policy",
    "improved_plain_over_policy",
    "improved_5_over_policy",
    "improved_plain_5_over_policy",
    "wrong_reference_over_policy",
    "wrong_reference_plain_over_policy",
    "policy_over_sft_policy",
)


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """Make one run from scratch and return its figures."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pit", "run", "demo", "--out", str(folder / "run"), "--set", f"seed={seed}"]
    subprocess.run(command, check=True, env={**os.environ, "PIT_CACHE": str(folder / "cache")})
    wall_s = time.perf_counter() - begin
    results = read_results(folder / "run")
    return {
        "seed": seed,
        "wall_s": round(wall_s, 1),
        "delta_points": {
            name: {k: getattr(results.delta[f"{name}/oracle"], k) for k in ("value", "low", "high", "n")}
            for name in DELTAS
        },
        "quality_stop_rule": [round(point.mean, 4) for point in results.quality["stop_rule"]],
        "quality_plain": [round(point.mean, 4) for point in results.quality["raw"]],
        "stages": {
            stage.name: {
                "seconds": stage.seconds,
                "of_which_compiling": stage.compile_seconds,
                "steps": stage.steps,
                "tokens": stage.tokens,
                "peak_memory_mib": round((stage.peak_memory_bytes or 0) / 2**20),
            }
            for stage in results.stages
        },
        "versions": dict(results.versions),
        "device": results.device,
    }


def main() -> None:
    """Run the seeds one after another and write the results file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo.json")
    arguments = parser.parse_args()
    measured = commit()
    runs = []
    for seed in arguments.seeds:
        with TemporaryDirectory() as folder:
            runs.append(run_seed(seed, Path(folder)))
        arguments.out.write_text(json.dumps({"commit": measured, "runs": runs}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(runs, indent=2))


if __name__ == "__main__":
    main()
