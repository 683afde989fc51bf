"""The page of plans shows what the committed plans say."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_rows_of_the_committed_plans(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    plans, growth = map(importlib.import_module, ("plans", "study_growth"))
    rows = [plans.table(), plans.adapters_table(), growth.table()]
    assert all(rows)
    page = (ROOT / "docs" / "guides" / "plan.md").read_text(encoding="utf-8").splitlines()
    assert [row for table in rows for row in table] == [line for line in page if line.startswith("| `v")]
