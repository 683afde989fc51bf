"""Exported models as scorers: folders that `pit export` wrote, read without torch and without their run."""

from pathlib import Path
from typing import Any

from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import abstract
from pit.model.pretrained import load_pretrained
from pit.run.exported import ExportFacts, exported_template
from pit.testing.checkpoint import CheckpointScorer, RewardKind
from pit.testing.policy import PolicyScorer, draw_format


def open_exported(folder: Path, facts: ExportFacts) -> Any:
    """Load an exported model: a reward model as a scorer with every method but a sampler's, a policy as a sampler.

    Args:
        folder: the folder.
        facts: facts of its run.

    Raises:
        DataError: the tokenizer or the chat template cannot be used.
        ModelFileError: a file is missing or damaged.
    """
    config, vocab_size, params = load_pretrained(folder)
    template = exported_template(folder, facts)
    if "score" in params:
        kind: RewardKind = "gap" if facts.reads_reference else "quality"
        return CheckpointScorer(abstract(RewardModel, config, vocab_size)[0], params, template, kind)
    return PolicyScorer(abstract(Decoder, config, vocab_size)[0], params, draw_format(template))
