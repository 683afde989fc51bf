"""History of a stage's draws and their gaps, one JSON line per step; `pit data curriculum` reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from pit.atomic import naming, write_file
from pit.data.curriculum.protocol import CurriculumError, Draws
from pit.records import DamagedFileError, read_lines

FILE_NAME = "draws.jsonl"


FIELDS: Mapping[str, Any] = MappingProxyType({"step": int, "id": list, "source": list, "gap": list | None})
REMEDY = "delete that line, which only `pit data curriculum` misses, and run the command again"


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
        self._path = path = folder / FILE_NAME
        if path.is_file():
            lines = read_lines(path, REMEDY, FIELDS, whole=False)
            write_file(path, b"".join(line for line, record in lines if record["step"] < resumed_step))
        self._file = path.open("a", encoding="utf-8")

    def add(self, visit: Visit) -> None:
        """Write one step."""
        step, ids, sources = visit.draws
        gap = None if visit.gap is None else [round(float(g), 5) for g in visit.gap]
        record = {"step": step, "id": ids.tolist(), "source": sources.tolist(), "gap": gap}
        with naming(self._path):
            self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
            self._file.flush()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self._path):
            self._file.close()


def read_history(folder: Path) -> list[Visit]:
    """Return the visits of a stage.

    Raises:
        CurriculumError: the stage has drawn nothing yet.
        DamagedFileError: a line is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file() or not path.stat().st_size:
        raise CurriculumError(
            f"{path}: holds no draws; run the stage first, or simulate one: `pit data curriculum demo --stage "
            f"{folder.name}`"
        )
    visits = []
    for number, (_, record) in enumerate(read_lines(path, REMEDY, FIELDS, whole=False), start=1):
        try:
            draws = Draws(record["step"], np.array(record["id"], np.int64), np.array(record["source"], np.uint8))
            visit = Visit(draws, None if record["gap"] is None else np.array(record["gap"], np.float32))
        except (ValueError, TypeError, OverflowError) as error:
            raise DamagedFileError(f"{path}:{number}: is damaged ({error}); {REMEDY}") from error
        columns = (draws.ids, draws.sources) if visit.gap is None else (draws.ids, draws.sources, visit.gap)
        if len({column.shape for column in columns}) != 1 or draws.ids.ndim != 1:
            raise DamagedFileError(f"{path}:{number}: is damaged, its columns differ in length; {REMEDY}")
        visits.append(visit)
    if not visits:
        raise DamagedFileError(f"{path}: holds no whole line; {REMEDY}")
    return visits
