"""History of a stage's draws and their gaps, one JSON line per step; `pit data curriculum` reads it."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from pit.data.atomic import write_file
from pit.data.curriculum.protocol import CurriculumError, Draws

FILE_NAME = "draws.jsonl"


class Visit(NamedTuple):
    """The visit of one step to its examples.

    draws: the draws of the step.
    gap: gap of each draw, mean over its samples; None if there is no reference.
    """

    draws: Draws
    gap: Float32[np.ndarray, " n"] | None


class History:
    """Writer that appends the visits of a stage to FOLDER/draws.jsonl.

    Args:
        folder: folder of the stage.
        resumed_step: lines of this step and later ones are dropped, because these steps are drawn again.
    """

    def __init__(self, folder: Path, resumed_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < resumed_step]
            write_file(path, "".join(kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def add(self, visit: Visit) -> None:
        """Write one step."""
        step, ids, sources = visit.draws
        gap = None if visit.gap is None else [round(float(g), 5) for g in visit.gap]
        record = {"step": step, "id": ids.tolist(), "source": sources.tolist(), "gap": gap}
        self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
        self._file.flush()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_history(folder: Path) -> list[Visit]:
    """Return the visits of a stage.

    Raises:
        CurriculumError: the stage has drawn nothing yet.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise CurriculumError(f"{path}: does not exist; run the stage first, or simulate: pit data curriculum RECIPE")
    visits = []
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        draws = Draws(record["step"], np.array(record["id"], np.int64), np.array(record["source"], np.uint8))
        visits.append(Visit(draws, None if record["gap"] is None else np.array(record["gap"], np.float32)))
    return visits
