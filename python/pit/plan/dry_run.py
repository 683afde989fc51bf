"""`pit run --dry-run`: the stages of a run and what each chip would hold, before anything is spent on it."""

from pathlib import Path

import jax.numpy as jnp
from rich.table import Table

from pit.config import RlConfig, RunConfig
from pit.data.template import Template
from pit.plan.memory import chip_bytes, held_bytes, kept_bytes, trained_bytes, trained_shapes
from pit.plan.sizes import parameters, rl_stages, rollout_sizes, slots_per_step, tree_limit, vocabulary
from pit.rl.curriculum import examples_of, expected_visits, source_weights
from pit.run.folder import Run
from pit.run.stage import DECODER, REWARD_MODEL
from pit.stages.graph import stages_of
from pit.stages.prepare import chat_template
from pit.stages.supervised import steps_of_fold
from pit.types import Source


def tables(config: RunConfig, folder: Path) -> list[Table]:
    """Return stages with steps and tokens, curricula of RL, models, sizes of rollouts, and memory of each stage.

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
    return [
        _stages(run, template),
        _curricula(run),
        _models(config),
        _rollouts(config, template),
        _memory(config, template),
    ]


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


def _models(config: RunConfig) -> Table:
    mesh = config.mesh
    table = Table("model", "parameters", "weights per chip", title="models, in float32")
    for kind in (DECODER, REWARD_MODEL):
        size = parameters(kind.config(config), vocabulary(config), kind.module)
        table.add_row(kind.shape, f"{size:,}", _bytes(chip_bytes(config, kind)))
    table.caption = (
        f"mesh data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor} = {mesh.shards * mesh.tensor} chips"
    )
    return table


def _rollouts(config: RunConfig, template: Template | None) -> Table:
    """Return what the sampler of each RL stage compiles and holds, if every prefix fills its windows."""
    table = Table(
        "stage", "samples", "slots", "prefixes at a time", "bytes besides the weights", title="rollouts, at most"
    )
    captions = []
    if config.mesh.shards > 1:
        captions.append(f"slots, prefixes and bytes are those of each of {config.mesh.shards} shards (data x fsdp)")
    if config.mesh.fsdp > 1:
        # Decoding gathers the weights over fsdp first, in the compute dtype.
        itemsize = jnp.dtype(config.policy.compute_dtype).itemsize
        size = parameters(config.policy, vocabulary(config), DECODER.module) * itemsize // config.mesh.tensor
        captions.append(f"{_bytes(size)} more while sampling: the weights that decode, not split over fsdp")
    table.caption = "; ".join(captions) or None
    for stage in rl_stages(config):
        section, sizes = stage.settings(config), rollout_sizes(config, stage, template)
        nbytes = sum(sizes.nbytes(config.policy, vocabulary(config)).values())
        samples = f"{section.prompts * section.samples:,}"
        table.add_row(stage.name, samples, f"{sizes.slots:,}", f"{sizes.prefixes:,}", _bytes(nbytes))
    return table


def _memory(config: RunConfig, template: Template | None) -> Table:
    """Return what each stage holds on a chip: the models of its roles, all that trains, and what a microbatch keeps."""
    table = Table(
        "stage", "models by role", "trains", "other models", "trained", "activations", title="bytes per chip of stages"
    )
    table.caption = (
        "trained: weights, gradient and optimizer; activations: what a microbatch keeps for its backward pass"
        + (", as if tensor were 1" if config.mesh.tensor > 1 else "")
        + "; no temporaries (`pit plan` has them for TPUs)"
    )
    for stage in stages_of(config):
        roles = ", ".join(f"{role} {source.name}" for role, source in stage.inputs(config).items())
        table.add_row(
            stage.name,
            roles or "-",
            f"{sum(shape.size for shape in trained_shapes(config, stage).values()):,}",
            _bytes(held_bytes(config, stage)),
            _bytes(trained_bytes(config, stage)),
            _bytes(kept_bytes(config, stage, template)),
        )
    return table


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.2f} MiB"
