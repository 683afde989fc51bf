"""`pit run --dry-run`: the stages of a run and what each chip would hold, before anything is spent on it."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from rich.table import Table

from pit.config import ModelConfig, PackingConfig, RlConfig, RunConfig
from pit.data.template import Template
from pit.data.tokenizer import Tokenizer
from pit.model.adapters import trainable_names
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import abstract
from pit.rl.curriculum import examples_of, expected_visits, source_weights
from pit.rollout.sizes import Sizes, sizes_of
from pit.run.base import pretrained_of
from pit.run.folder import Run
from pit.run.stage import DECODER, REWARD_MODEL, Kind, Stage
from pit.stages.graph import stages_of
from pit.stages.prepare import chat_template
from pit.stages.supervised import steps_of_fold
from pit.types import Source

FLOAT_BYTES = 4

TRAINED_COPIES = 4
"""Copies of the weights that AdamW holds of a trained model: weights, gradient, two moments."""


def parameters(config: ModelConfig, vocab_size: int, kind: type[Decoder] | type[RewardModel]) -> int:
    """Return the number of parameters of a model, from its shapes alone."""
    model = nnx.eval_shape(lambda: kind(config, vocab_size, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def tables(config: RunConfig, folder: Path) -> list[Table]:
    """Return stages with steps and tokens, memory per chip, sizes of rollouts, and resident models of each RL stage.

    Args:
        config: the run.
        folder: its folder; steps of "one pass" are counted if the data are already prepared there.

    Raises:
        ConfigError: a stage cannot work under this config.
        DataError: the chat format cannot be used.
    """
    run = Run(folder, config)
    for stage in stages_of(config):
        stage.validate(config)
    template = chat_template(run)
    return [_stages(run, template), _curricula(run), _memory(config), _rollouts(config, template), _resident(config)]


def vocabulary(config: RunConfig) -> int:
    """Return the rows of the embedding: of the pretrained model, of the tokenizer, or of the one to be trained."""
    pretrained = pretrained_of(config)
    if pretrained is not None:
        return pretrained.vocab_size
    path = config.tokenizer.path
    return config.tokenizer.vocab_size if path is None else Tokenizer.load(path).vocab_size


def rl_stages(config: RunConfig) -> list[Stage]:
    """Return the RL stages of a run: those that maximise a reward."""
    return [stage for stage in stages_of(config) if stage.maximises(config)]


def _stages(run: Run, template: Template | None) -> Table:
    config = run.config
    table = Table("stage", "what", "steps", "tokens per step", "tokens", title=f"recipe {config.name}")
    for stage in stages_of(config):
        section = stage.settings(config)
        if isinstance(section, RlConfig):
            slots = section.prompts * tree_limit(config, stage, template)
        else:
            slots = slots_per_step(section.packing, config.mesh.shards)
        steps = section.steps or (steps_of_fold(stage, run) if run.prepared else None)
        total = "one pass; prepare the data to count" if steps is None else f"<= {steps * slots:,}"
        table.add_row(stage.name, stage.title, "one pass" if steps is None else f"{steps:,}", f"<= {slots:,}", total)
    return table


def _curricula(run: Run) -> Table:
    table = Table("stage", "sources of references", "prompts", "visits per example", title="RL curricula")
    for stage in rl_stages(run.config):
        section = stage.settings(run.config)
        visits = "prepare the data to count"
        if run.prepared:
            visits = f"{expected_visits(section, examples_of(section, run.fold(stage.fold))):.2g}"
        weights = source_weights(section)[0][1]
        sources = ", ".join(
            f"{source.name.lower()} {weight}" for source, weight in zip(Source, weights, strict=True) if weight
        )
        table.add_row(stage.name, sources, f"{section.steps * section.prompts:,}", visits)
    return table


def slots_per_step(packing: PackingConfig, shards: int) -> int:
    """Return the token slots of one step, padding included."""
    return packing.row_length * packing.rows * packing.microbatches * shards


def tree_limit(config: RunConfig, stage: Stage, template: Template | None) -> int:
    """Return the most tokens of one tree of a stage; those of the windows in role tokens."""
    if template is not None:
        return template.tree(stage.topology(config))
    windows = (config.windows.input, config.windows.reference, config.windows.output)
    return sum(windows[segment.kind] for segment in stage.topology(config).segments)


def _memory(config: RunConfig) -> Table:
    mesh = config.mesh
    table = Table(
        "model", "parameters", "weights", "+ AdamW and gradient", title="bytes per chip (activations not counted)"
    )
    for kind in (DECODER, REWARD_MODEL):
        size = parameters(kind.config(config), vocabulary(config), kind.module)
        weights = _chip_bytes(config, kind)
        table.add_row(kind.shape, f"{size:,}", _bytes(weights), _bytes(TRAINED_COPIES * weights))
    table.caption = (
        f"mesh data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor} = {mesh.shards * mesh.tensor} chips"
    )
    return table


def _chip_bytes(config: RunConfig, kind: Kind) -> int:
    """Return the bytes of a model's weights on one chip."""
    split = config.mesh.fsdp * config.mesh.tensor
    return parameters(kind.config(config), vocabulary(config), kind.module) * FLOAT_BYTES // split


def _own_bytes(config: RunConfig, stage: Stage) -> int:
    """Return the bytes on one chip of the weights that are a stage's own: its adapters and head, or the whole model."""
    adapter = stage.adapter(config)
    if adapter is None:
        return _chip_bytes(config, stage.trains)
    _, shapes = abstract(stage.trains.module, stage.trains.config(config), vocabulary(config), adapter)
    size: int = sum(shapes[name].size for name in trainable_names(shapes))
    return size * FLOAT_BYTES // (config.mesh.fsdp * config.mesh.tensor)


def _base_bytes(config: RunConfig) -> int:
    """Return the bytes on one chip of the frozen base that all adapters share."""
    return _chip_bytes(config, DECODER) * jnp.dtype(config.base.dtype).itemsize // FLOAT_BYTES


def _rollouts(config: RunConfig, template: Template | None) -> Table:
    """Return what the sampler of each RL stage compiles and holds, if every prefix fills its windows."""
    table = Table(
        "stage", "samples", "slots", "prefixes at a time", "bytes besides the weights", title="rollouts, at most"
    )
    if config.mesh.shards > 1:
        table.caption = f"slots, prefixes and bytes are those of each of {config.mesh.shards} shards (data x fsdp)"
    for stage in rl_stages(config):
        section, sizes = stage.settings(config), rollout_sizes(config, stage, template)
        nbytes = sum(sizes.nbytes(config.policy, vocabulary(config)).values())
        samples = f"{section.prompts * section.samples:,}"
        table.add_row(stage.name, samples, f"{sizes.slots:,}", f"{sizes.prefixes:,}", _bytes(nbytes))
    return table


def rollout_sizes(
    config: RunConfig, stage: Stage, template: Template | None = None, prompts: int | None = None
) -> Sizes:
    """Return the sizes of the sampler in an RL stage's step, with prefixes as long as their windows.

    Args:
        config: the run.
        stage: the RL stage.
        template: template of the run's chat format, None in role tokens.
        prompts: number of prefixes; None for those of a step.
    """
    section, output = stage.settings(config), config.windows.output
    answer, capacity = (output, output - 1) if template is None else (template.longest[2] + 1, template.capacity)
    prompts = section.prompts if prompts is None else prompts
    return sizes_of(
        [tree_limit(config, stage, template) - section.samples * answer] * prompts,
        n=section.samples,
        capacity=capacity,
        config=section.rollout,
        shards=config.mesh.shards,
    )


def _resident(config: RunConfig) -> Table:
    """Return the models that each RL stage holds: one per stage among its inputs, and the trained one's optimizer.

    Models with adapters hold their base once.
    """
    # Decoding gathers the weights over fsdp first, in the compute dtype.
    read_bytes = jnp.dtype(config.policy.compute_dtype).itemsize
    decoding = _chip_bytes(config, DECODER) // FLOAT_BYTES * read_bytes * config.mesh.fsdp
    decoding = decoding if config.mesh.fsdp > 1 else 0
    table = Table("stage", "models by role", "bytes per chip", title="models resident in each RL stage")
    if decoding:
        table.caption = f"{_bytes(decoding)} of it while sampling: the weights that decode, not split over fsdp"
    for stage in rl_stages(config):
        inputs = stage.inputs(config)
        roles = ", ".join(f"{role} {source.name}" for role, source in inputs.items())
        held = {source.name: _own_bytes(config, source) for role, source in inputs.items() if role != "start"}
        size = TRAINED_COPIES * _own_bytes(config, stage) + sum(held.values())
        if any(each.adapter(config) is not None for each in (stage, *inputs.values())):
            size += _base_bytes(config)
        table.add_row(stage.name, roles, _bytes(size + decoding))
    return table


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.2f} MiB"
