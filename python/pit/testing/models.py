"""Folders as scorers: PIT's runs and transformers classifiers; and the preferences of a run.

Only this module knows how a run is laid out; `pit check` imports it only for folders.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pit.evaluate.gold import best_gold
from pit.evaluate.sensitivity import sampled_pairs
from pit.model.adapted_source import is_adapter
from pit.records import read_object
from pit.run.exported import ExportFacts
from pit.run.folder import Run
from pit.run.stage import DECODER
from pit.seeds import Seed
from pit.stages.graph import STAGES, stage_named
from pit.testing.adapters import Difference
from pit.testing.checkpoint import CheckpointScorer
from pit.testing.classifiers import SequenceClassifier
from pit.testing.decoders import DecoderClassifier, reads
from pit.testing.errors import CheckError
from pit.testing.exported import open_exported
from pit.testing.policy import PolicyScorer
from pit.types import Preference


def open_folder(model: str, stage: str = "reward-gap") -> Any:
    """Load the scorer of a folder.

    Args:
        model: folder of a run, of an exported model, of a transformers sequence classifier, or of a reward model's
            adapters in the format of PEFT.
        stage: stage of a run; a policy becomes a sampler, a reward model a scorer with every other method.

    Raises:
        OSError: the folder has no config.json.
        DamagedFileError: its config.json is damaged.
        CheckError: the folder holds neither a model nor a run, the run does not have such a stage, or the adapters are
            those of a run.
        ConfigError: the folder does not hold a run.
        CheckpointError: the stage has not finished.
        ModelFileError: a file of an exported model is missing or damaged.
    """
    folder = Path(model)
    if is_adapter(folder):
        _require_foreign(folder)
        return Difference(DecoderClassifier.open(folder))
    remedy = "give the folder of a run, or of a transformers sequence classifier"
    values = read_object(folder / "config.json", remedy)
    facts = ExportFacts.of(values, folder / "config.json")
    if facts is not None:
        return open_exported(folder, facts)
    if "architectures" in values:
        return Difference(DecoderClassifier.open(folder) if reads(folder) else SequenceClassifier.open(folder))
    if not any((folder / name).is_dir() for name in ("store", "stages")):
        raise CheckError(
            f"{folder}: its config.json names no architecture of a model, and it is not the folder of a run (no store, "
            f"no stages); {remedy}"
        )
    named = stage_named(stage)
    if named is not None and named.trains == DECODER:
        return PolicyScorer.open(folder, named)
    return CheckpointScorer.open(folder, stage)


def _require_foreign(folder: Path) -> None:
    """Raise if PIT exported an adapter: its files do not say how its run laid out text."""
    card = folder / "README.md"
    if card.is_file() and "trained by PIT" in card.read_text(encoding="utf-8", errors="replace"):
        raise CheckError(f"{folder}: holds adapters without their base; export the stage with --merged to check it")


def rows_of_run(folder: Path, limit: int) -> list[Preference]:
    """Return at most `limit` preferences of the eval fold of a run, decoded by its tokenizer."""
    run = Run.open(folder)
    return _as_text(run, (row[:3] for row in _first(run, limit)))


def rows_of_samples(folder: Path, policy: str, limit: int, seed: int) -> tuple[list[Preference], str]:
    """Return pairs of samples of a run's policy, and the name of the source that ranked them.

    The source is the task's oracle, or the held-out judge where the data are real. Pairs that it ranks equal are left
    out.

    Args:
        folder: folder of the run.
        policy: stage whose policy is sampled.
        limit: maximum number of prompts, the first ones of the eval fold.
        seed: seed of the samples.

    Raises:
        CheckError: the stage does not train a policy.
        CheckpointError: the policy or the judge has not finished.
    """
    stage = stage_named(policy)
    if stage is None or stage.trains != DECODER:
        policies = ", ".join(stage.name for stage in STAGES if stage.trains == DECODER)
        raise CheckError(f"--samples-of {policy}: is not a policy of {folder}; give one of {policies}")
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
    plain = ([[int(token) for token in tokens] for tokens in row] for row in rows)
    return [Preference(prompt(x), answer(better), answer(worse)) for x, better, worse in plain]
