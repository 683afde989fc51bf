"""The command `pit STAGE --run FOLDER` for stages of a prepared run in turn; finished stages have fresh weights.

Options that say which process this is are the first command's: the others go on in the same group.
"""

import sys
from pathlib import Path

from pit.cli import main as pit
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
    """Do the commands."""
    folder, *words = sys.argv[1:]
    names = [word for word in words if not word.startswith("--")]
    Stage.load = Stage.fresh  # type: ignore[method-assign]
    for number, name in enumerate(names):
        pit([name, "--run", folder, *([] if number else words[len(names) :])])


if __name__ == "__main__":
    main()
