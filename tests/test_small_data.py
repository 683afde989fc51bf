"""Data too small for a run: every empty fold and every dropped row is said before a stage starts."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pit.config import override
from pit.data.errors import DataError
from pit.evaluate.gates import GATE
from pit.pipeline import run_pipeline
from pit.recipes import recipe
from pit.run.folder import Run
from pit.run.stage import Services
from pit.stages.prepare import prepare


def small_run(folder: Path, n: int) -> Run:
    """Return a run on n good rows and one bad one."""
    records = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)]
    lines = [*map(json.dumps, records), json.dumps({"prompt": "q", "chosen": "same", "rejected": "same"})]
    (folder / "d.jsonl").write_text("\n".join(lines))
    return Run(folder / "run", override(recipe("tiny"), [f"data.path={folder / 'd.jsonl'}"]))


def test_a_run_says_what_was_dropped_and_starts_no_stage_on_an_empty_fold(tmp_path: Path) -> None:
    run = small_run(tmp_path, 3)
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(DataError, match=r"fold '.*' has no rows .rows by fold: sft \d, reward \d"):
        run_pipeline(run, console=console)
    assert not (run.folder / "stages").exists()
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "4 rows read, 3 pairs kept, 1 dropped\n" in said
    assert "dropped 1: equal answers; both answers are the same text (d.jsonl:4)\n" in said
    assert "is empty; no stage that reads it can work" in said


def test_the_gate_names_an_empty_fold(tmp_path: Path) -> None:
    run = small_run(tmp_path, 3)
    folds = (prepare(run) or pytest.fail("was prepared before")).folds
    assert folds["eval"] == 0
    with pytest.raises(DataError, match=r"fold 'eval' has no rows"):
        GATE.work(run, Services())
