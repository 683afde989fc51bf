"""PIT's runs and transformers folders as scorers, and the preferences of a run."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pit.evaluate.gold import best_gold
from pit.evaluate.sensitivity import sampled_pairs
from pit.run.folder import Run
from pit.run.stage import DECODER, Stage
from pit.seeds import Seed
from pit.stages.graph import GRAPH, stage_named
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
    named = stage_named(stage)
    if named is not None and named.trains == DECODER:
        return PolicyScorer.open(folder, named)
    return CheckpointScorer.open(folder, stage)


def rows_of_run(folder: Path, limit: int) -> list[Preference]:
    """At most `limit` preferences of the eval fold of a run, as its tokenizer writes them."""
    run = Run.open(folder)
    return _as_text(run, (row[:3] for row in _first(run, limit)))


def rows_of_samples(folder: Path, policy: str, limit: int, seed: int) -> tuple[list[Preference], str]:
    """Pairs of samples of a run's policy for the first `limit` prompts of the eval fold, and who says what is better.

    That is the task's oracle, or the held-out judge where the data are real. Pairs that it finds equal are left out.

    Raises:
        CheckError: the run has no such policy.
        CheckpointError: the policy, or the judge, has not finished.
    """
    stage = stage_named(policy)
    if stage is None or stage.trains != DECODER:
        policies = ", ".join(job.name for job in GRAPH if isinstance(job, Stage) and job.trains == DECODER)
        raise CheckError(f"--samples-of {policy}: must be a policy of a run, one of {policies}")
    run = Run.open(folder)
    gold, name = best_gold(run)
    prompts = [[int(t) for t in row[0]] for row in _first(run, limit)]
    pairs = sampled_pairs(run, stage.load(run), gold, prompts, seed=Seed((seed, "check")))
    return _as_text(run, zip(*pairs, strict=True)), name


def _first(run: Run, limit: int) -> Iterator[Any]:
    fold = run.fold("eval")
    return (fold.row(i) for i in range(min(limit, len(fold))))


def _as_text(run: Run, rows: Iterable[tuple[Any, Any, Any]]) -> list[Preference]:
    prompt, answer = run.template.decode_prompt, run.template.decode_answer
    return [Preference(prompt(x), answer(better), answer(worse)) for x, better, worse in rows]
