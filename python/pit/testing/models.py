"""PIT's runs and transformers folders as scorers, and the preferences of a run."""

import json
from pathlib import Path
from typing import Any

from pit.stages.context import STAGES, Run
from pit.testing.adapters import Difference, SequenceClassifier
from pit.testing.checkpoint import CheckpointScorer
from pit.testing.faults import CheckError
from pit.testing.policy import PolicyScorer
from pit.types import Preference


def open_folder(model: str, stage: str = "reward-gap") -> Any:
    """The scorer of a folder.

    Args:
        model: of a run, or of a transformers sequence classifier.
        stage: of a run; a policy is asked for samples, a reward model for the rest.

    Raises:
        CheckError: it holds neither.
    """
    folder = Path(model)
    config = folder / "config.json"
    if not config.is_file():
        raise CheckError(
            f"{model}: is no model (no config.json); name the folder of a run, the folder of a transformers sequence "
            "classifier, or MODULE:NAME of a scorer in Python"
        )
    if "architectures" in json.loads(config.read_text(encoding="utf-8")):
        return Difference(SequenceClassifier.open(folder))
    if stage in STAGES and STAGES[stage].model == "policy":
        return PolicyScorer.open(folder, stage)
    return CheckpointScorer.open(folder, stage)


def rows_of_run(folder: Path, limit: int) -> list[Preference]:
    """At most `limit` preferences of the eval fold of a run, as its tokenizer writes them."""
    run = Run.open(folder)
    fold, template = run.fold("eval"), run.template
    rows = []
    for i in range(min(limit, len(fold))):
        prompt, better, worse = fold.row(i)[:3]
        rows.append(
            Preference(template.decode_prompt(prompt), template.decode_answer(better), template.decode_answer(worse))
        )
    return rows
