"""Runs whose stages count as finished, with weights drawn at random: everything of a run but the hours."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file
from small_model import write_model, write_preferences

from pit.config import DataConfig, override
from pit.data.tokenizer import Tokenizer
from pit.model.pretrained import Pretrained
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages.graph import stage_named
from pit.stages.prepare import prepare
from pit.train.update import TrainState

ADAPTERS = tuple(
    f"{name}.adapter.rank=2"
    for name in (
        *("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge", "refresh"),
        *("rl_policy", "rl_improver_0", "rl_improver_1", "rl_improver_2"),
    )
)
"""Settings of a run that trains adapters."""


def chat_run(folder: Path, start: str | Path, *settings: str) -> Run:
    """Return a prepared run of the recipe `chat` on a small model: one in a format of `chat_cases`, or a folder."""
    model = start if isinstance(start, Path) else _plain(write_model(folder / "base", start))
    data = write_preferences(folder / "pairs.jsonl")
    settings = (f"data.path={data}", "template.request=Once more, please.", *settings)
    config = recipe("chat", Pretrained.open(model), DataConfig(task=None, path=str(data)))
    return prepared(Run(folder / "run", override(config, settings)))


def _plain(model: Path) -> Path:
    """Make a model answer in printable ASCII: bytes that are no text are shown otherwise in a later turn."""
    tokenizer = Tokenizer.pretrained((model / "tokenizer.json").read_text())
    tensors = dict(load_file(model / "model.safetensors"))
    table = np.array(tensors["model.embed_tokens.weight"])
    for token_id in range(len(table)):
        text = tokenizer.decode([token_id])
        if not (text.isascii() and text.isprintable()):
            table[token_id] = 0
    save_file({**tensors, "model.embed_tokens.weight": table}, model / "model.safetensors", metadata={"format": "pt"})
    return model


def role_run(folder: Path, name: str = "hh", *settings: str) -> Run:
    """Return a prepared run of a recipe with role tokens, on synthetic or on given preferences."""
    config = recipe(name)
    if config.data.task is None:
        settings = (f"data.path={write_preferences(folder / 'pairs.jsonl')}", *settings)
    else:
        settings = ("data.synthetic_rows=400", *settings)
    return prepared(Run(folder / "run", override(config, settings)))


def reset(run: Run, *settings: str) -> Run:
    """Return the run under other settings, whether or not it can have them."""
    return Run(run.folder, override(run.config, settings))


def prepared(run: Run) -> Run:
    """Return the run with its data."""
    prepare(run)
    return run


def finish(run: Run, *names: str, spread: float | None = 0.3) -> Run:
    """Give stages a checkpoint and a record, with weights that differ from the initial ones by a share of their spread.

    Args:
        run: a prepared run.
        names: names of the stages.
        spread: the share; None for the initial weights.
    """
    for number, name in enumerate(names):
        stage = stage_named(name)
        model = stage.fresh(run)
        params = dict(model.trained)
        if spread is not None:
            rng = np.random.default_rng(number)
            for each, value in sorted(params.items()):
                noise = (spread * np.std(value) + 0.02) * rng.normal(size=value.shape)
                params[each] = jax.device_put(np.asarray(value + noise, np.float32), value.sharding)
        with stage.checkpoints(run, keep=1) as checkpoints:
            state = TrainState(jnp.int32(3), params, {"count": jnp.int32(3)})
            checkpoints.save(state, {}, {}, {"hash": stage.hash(run), "tokens": 1234})
        record = {
            "hash": stage.hash(run),
            "steps": 3,
            "tokens": 1234,
            "seconds": 1.5,
            "compile_seconds": 0.5,
            "peak_memory_bytes": 0,
        }
        (run.stage_folder(name) / "done.json").write_text(json.dumps(record))
    return run
