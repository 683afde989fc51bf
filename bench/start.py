"""Seconds from the start of a stage's process to its first step, weights loaded and programs compiled.

    python bench/start.py [--full --file MODEL --data DATA]

Runs `pit sft-policy` of the recipe tiny, or with `--full` of smollm2 on a model's file and preferences, for three steps
in a process of its own, twice a round: `cold` compiles, `warm` finds the programs on disk. `ready_s` is when the first
step of the warm one begins: its end, less a step. `compile_s` is the time in XLA's compiler of the cold one, over all
its programs; a process traces and lowers them as well, and `first_step_s`, the end of its first step, has it all.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import _pretrained
from _measure import keep, origin, results_file, size_options, spread
from pit.config import override
from pit.model.pretrained import Pretrained
from pit.run.folder import Run
from pit.train.log import PROGRESS_VARIABLE

STAGE, STEPS = "sft-policy", 3


def measured(run: Run, folder: Path) -> dict[str, float]:
    """Return the seconds of a cold and a warm start."""
    cold, warm = (started(run, folder / name, folder / "cache") for name in ("cold", "warm"))
    return {
        "ready_s": warm["first_step_s"] - warm["step_s"],
        **{name: cold[name] for name in ("compile_s", "first_step_s", "step_s")},
    }


def started(run: Run, folder: Path, cache: Path) -> dict[str, float]:
    """Return the seconds of one start, in a copy of the run without its stages; a cache holds compiled programs."""
    copy = Run(folder, override(run.config, [f"sft_policy.{name}={n}" for name, n in CUT.items()]))
    folder.mkdir(parents=True)
    for path in run.folder.iterdir():
        if path.name not in ("stages", "config.json"):
            (folder / path.name).symlink_to(path.resolve())
    copy.save_config()
    command = [sys.executable, "-c", PROGRAM, STAGE, "--run", str(folder)]
    begin, ends = time.perf_counter(), []
    # Jax reads the variable when the program imports it, before the command would set it.
    environment = {**os.environ, PROGRESS_VARIABLE: "json", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"{"):
                ends.append(time.perf_counter() - begin)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    compile_s = json.loads((copy.stage_folder(STAGE) / "done.json").read_text())["compile_seconds"]
    step_s = ends[-1] - ends[0] if len(ends) < STEPS else ends[1] - ends[0]
    return {"compile_s": compile_s, "first_step_s": ends[0], "step_s": step_s}


CUT = {"steps": STEPS, "evaluate_every": 1000, "checkpoint_every": 1000}

PROGRAM = """
from pit.stages.supervised import SupervisedTask
SupervisedTask.log_every = 1  # a line of metrics waits for its step; progress alone runs ahead of it
from pit.cli import main
main()
"""


def main() -> None:
    """Measure a few starts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size_options(parser, "start")
    parser.add_argument("--file", type=Path, help="a pretrained model: a folder or a GGUF file")
    parser.add_argument("--data", help="preferences for it")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.full != (options.file is not None and options.data is not None):
        parser.error("--full needs --file and --data, and they need --full")
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        if options.full:
            run = _pretrained.prepared(Pretrained.open(options.file), options.data, place / "run")
        else:
            run = _pretrained.tiny(place / "run")
        rounds = [measured(run, place / str(number)) for number in range(options.rounds)]
    name = options.file.name if options.full else "tiny"
    row = {key: spread(np.array([each[key] for each in rounds])) for key in rounds[0]}
    ready, compiling, first = (row[key]["median"] for key in ("ready_s", "compile_s", "first_step_s"))
    summary = f"{name}: ready after {ready:.1f} s and {compiling:.1f} s of compiling, first step ends at {first:.1f} s"
    keep(results_file(options, "start"), {name: {**row, **origin(0, options.rounds)}}, summary)


if __name__ == "__main__":
    main()
