"""A program that trains stages of a prepared run one after the other; fresh weights are those of finished stages."""

import argparse
from pathlib import Path

from pit import processes
from pit.evaluate.gold import services
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages.graph import stage_named


def work(folder: Path, names: list[str]) -> None:
    """Train stages of a run in this process."""
    for name in names:
        stage = stage_named(name)
        assert stage is not None
        stage.work(Run.open(folder), services())


def main() -> None:
    """Join the other processes, and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    given = parser.parse_args()
    processes.start(processes.Members(given.coordinator, given.processes, given.process))
    Stage.load = Stage.fresh  # type: ignore[method-assign]
    work(given.folder, given.stages)


if __name__ == "__main__":
    main()
