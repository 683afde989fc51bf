"""One process that compiles and counts the jobs of one contender for one target; started by `suite`, speaks JSON.

A separate process isolates contenders: changes of JAX's settings or caches reach no other.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pit_kernels.microbench.contenders import Contender, contenders, load_contender
from pit_kernels.microbench.hot_tiles import hot_tile
from pit_kernels.microbench.problems import Job, Problem, class_problem, problems, program
from pit_kernels.microbench.static import Static, analyse
from pit_kernels.workloads import HEAD_SHAPES, gap_workload


def summary(static: Static, problem: Problem, job: Job) -> dict[str, Any]:
    """Return the figures of a static cost, as JSON; "tile" is there for problems that measure the hot tile."""
    tile = hot_tile(static.kernels, job.direction, static.target) if problem.tells_tile else None
    return {
        "cycles": static.cycles,
        "hbm_bytes": static.hbm_bytes,
        "compute_us": round(static.compute_us, 3),
        "memory_us": round(static.memory_us, 3),
        "us": round(static.us, 3),
        "complete": static.complete,
        "fills": sum(kernel.fills for kernel in static.kernels),
        "spills": sum(kernel.spills for kernel in static.kernels),
        "vmem_bytes": static.vmem_bytes,
        "launches": sum(kernel.calls or 0 for kernel in static.kernels[:-1]),
        "notes": static.notes,
        **({} if tile is None else {"tile": asdict(tile)}),
        "kernels": [asdict(kernel) for kernel in static.kernels],
    }


def named_problem(operation: str, name: str, lengths: dict[str, Any] | None) -> Problem:
    """Return a problem by its name; "lengths" has the given lengths, "class:..." the shapes of a class."""
    if name == "lengths" and lengths is not None:
        shape = next(shape for shape in HEAD_SHAPES if shape.model == lengths["model"])
        triples = [(a, b, c) for a, b, c in lengths["triples"]]
        workload = gap_workload(triples, lengths["row_length"], shape)
        return Problem(name, operation, f"{len(triples)} preferences of the given lengths", workload)
    if name.startswith("class:"):
        return class_problem(operation, name.removeprefix("class:"))
    return problems(operation)[name]


def named_contender(operation: str, name: str) -> Contender:
    """Return a contender by its name, or a user's function."""
    return load_contender(operation, name) if ":" in name else contenders(operation)[name]


def main() -> None:
    """Read one request from standard input and write one line per job."""
    request = json.load(sys.stdin)
    contender = named_contender(request["operation"], request["contender"])
    for number, fields in enumerate(request["jobs"]):
        job = Job(**fields)
        problem = named_problem(request["operation"], job.problem, request.get("lengths"))
        keep = request.get("keep_dumps")
        folder = Path(keep) / f"{contender.name}-{request['target']}-{number}".replace(":", ".") if keep else None
        # A refusal of the compiler (no room in VMEM, tiles that do not fit) is the result of the job.
        try:
            function, arguments = program(problem, contender, job)
            answer = summary(analyse(function, arguments, request["target"], keep_dumps=folder), problem, job)
        except Exception as error:
            message = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {message[0] if message else ''}"[:400]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
