"""A pretrained model and preferences, prepared as a run of the recipe smollm2, for us and for peers in torch."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

from pit.config import DataConfig, RunConfig, TemplateConfig
from pit.model.pretrained import Pretrained, save_pretrained
from pit.recipes import recipe
from pit.recipes.chat_model import smollm2
from pit.recipes.lengths import measure
from pit.run.base import load_base
from pit.run.folder import Run
from pit.seeds import Seed
from pit.stages.prepare import prepare


def prepared(model: Pretrained, data: str, folder: Path) -> Run:
    """Return a run of the recipe smollm2 whose data are prepared."""
    preferences, template = DataConfig(path=data, task=None), TemplateConfig()
    config = smollm2(model, measure(model, preferences, template))
    return _prepared(folder, replace(config, data=preferences))


def tiny(folder: Path) -> Run:
    """Return a run of the recipe tiny, with random weights and synthetic data, which are prepared."""
    return _prepared(folder, recipe("tiny"))


def _prepared(folder: Path, config: RunConfig) -> Run:
    run = Run(folder, config)
    with contextlib.redirect_stderr(io.StringIO()):
        prepare(run)
    return run


def written(run: Run, folder: Path) -> Path:
    """Write the run's base in float32 as a folder of transformers, and return it."""
    base = load_base(
        replace(run.config, base=replace(run.config.base, dtype="float32")), run.vocab_size, Seed((0,)), run.mesh
    )
    save_pretrained(
        folder,
        run.config.policy,
        base.params,
        run.vocab_size,
        tokenizer=run.tokenizer.to_json(),
        eos_ids=run.template.eos_ids,
        pad_id=run.template.eos_ids[0],
    )
    return folder
