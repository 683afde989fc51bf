"""`pit run --dry-run`: what a run would do and what each chip would hold, before anything is spent on it."""

from pathlib import Path

import jax
from flax import nnx
from rich.table import Table

from pit.config import ModelConfig, PackingConfig, RlConfig, RunConfig
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.rollout.sizes import Sizes, sizes_of
from pit.stages.context import STAGES, Run, StageSpec, stages_of
from pit.stages.curriculum import examples_of, expected_visits

FLOAT_BYTES = 4


def parameters(config: ModelConfig, vocab_size: int, kind: type[Decoder] | type[RewardModel]) -> int:
    """Parameters of a model, from its shapes alone."""
    model = nnx.eval_shape(lambda: kind(config, vocab_size, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def tables(config: RunConfig, folder: Path) -> list[Table]:
    """Stages with steps and tokens, memory per chip, what rollouts hold, and the models resident in each RL phase.

    Args:
        config: the run.
        folder: its folder; steps of "one pass" are counted if the data are already prepared there.
    """
    return [_stages(config, folder), _curricula(config, folder), _memory(config), _rollouts(config), _resident(config)]


def _stages(config: RunConfig, folder: Path) -> Table:
    table = Table("stage", "what", "steps", "tokens a step", "tokens", title=f"recipe {config.name}")
    for spec in map(STAGES.__getitem__, stages_of(config)):
        section = getattr(config, spec.section)
        slots = slots_per_step(section.packing, config.mesh.shards)
        steps = section.steps or _counted(config, folder, spec)
        if spec.name.startswith("rl-"):
            slots = section.prompts * _tree_limit(config, spec, section.samples)
        total = "one pass; prepare the data to count" if steps is None else f"<= {steps * slots:,}"
        table.add_row(spec.name, spec.title, "one pass" if steps is None else f"{steps:,}", f"<= {slots:,}", total)
    return table


def _curricula(config: RunConfig, folder: Path) -> Table:
    table = Table("stage", "draws", "worse : better : policy", "prompts", "visits an example", title="RL curricula")
    fold = Run(folder, config).fold("rl") if _prepared(folder) else None
    for spec in map(STAGES.__getitem__, stages_of(config)):
        section = getattr(config, spec.section)
        if isinstance(section, RlConfig):
            visits = "prepare the data to count"
            if fold is not None:
                visits = f"{expected_visits(section, examples_of(section, fold)):.2g}"
            sources = " : ".join(map(str, section.sources))
            prompts = f"{section.steps * section.prompts:,}"
            table.add_row(spec.name, section.curriculum.strategy, sources, prompts, visits)
    return table


def _prepared(folder: Path) -> bool:
    return (folder / "store" / "manifest.json").is_file()


def slots_per_step(packing: PackingConfig, shards: int) -> int:
    """Token slots of one step, padding included."""
    return packing.row_length * packing.rows * packing.microbatches * shards


def _tree_limit(config: RunConfig, spec: StageSpec, samples: int) -> int:
    """Most tokens of one tree of rollouts."""
    windows = config.windows
    return windows.input + (windows.reference if spec.name != "rl-policy" else 0) + samples * windows.output


def _counted(config: RunConfig, folder: Path, spec: StageSpec) -> int | None:
    if not _prepared(folder):
        return None
    from pit.data.loader import count_steps
    from pit.stages import reward, sft

    tasks = {t.stage: t for t in (sft.POLICY, sft.IMPROVER, reward.QUALITY, reward.GAP, reward.JUDGE)}
    run, task, section = Run(folder, config), tasks[spec.name], getattr(config, spec.section)
    return count_steps(
        run.fold(task.fold),
        task.topology,
        run.layout(section.packing),
        section.packing,
        shards=config.mesh.shards,
        seed=config.seed,
    )


def _memory(config: RunConfig) -> Table:
    mesh, vocab = config.mesh, config.tokenizer.vocab_size
    split = mesh.fsdp * mesh.tensor
    table = Table(
        "model", "parameters", "weights", "+ AdamW and gradient", title="bytes per chip (activations not counted)"
    )
    for name, kind in (("policy", Decoder), ("reward_model", RewardModel)):
        size = parameters(getattr(config, name), vocab, kind)
        weights = size * FLOAT_BYTES // split
        table.add_row(name, f"{size:,}", _bytes(weights), _bytes(4 * weights))
    table.caption = (
        f"mesh data {mesh.data} x fsdp {mesh.fsdp} x tensor {mesh.tensor} = {mesh.shards * mesh.tensor} chips"
    )
    return table


def _rollouts(config: RunConfig) -> Table:
    """What the sampler of each RL stage compiles and holds, if every prefix filled its windows."""
    table = Table(
        "stage", "samples", "slots", "prefixes at a time", "bytes beside the weights", title="rollouts, at most"
    )
    if config.mesh.shards > 1:
        table.caption = f"slots, prefixes and bytes are those of each of {config.mesh.shards} shards (data x fsdp)"
    for spec in map(STAGES.__getitem__, stages_of(config)):
        section = getattr(config, spec.section)
        if isinstance(section, RlConfig):
            held = rollout_sizes(config, spec, section)
            nbytes = sum(held.nbytes(config.policy, config.tokenizer.vocab_size).values())
            samples = f"{section.prompts * section.samples:,}"
            table.add_row(spec.name, samples, f"{held.slots:,}", f"{held.prefixes:,}", _bytes(nbytes))
    return table


def rollout_sizes(config: RunConfig, spec: StageSpec, section: RlConfig) -> Sizes:
    """Sizes of the sampler of an RL stage's step, with prefixes as long as their windows."""
    windows = config.windows
    longest = windows.input + (0 if spec.name == "rl-policy" else windows.reference)
    return sizes_of(
        [longest] * section.prompts,
        n=section.samples,
        capacity=windows.output - 1,
        config=section.rollout,
        shards=config.mesh.shards,
    )


def _resident(config: RunConfig) -> Table:
    vocab = config.tokenizer.vocab_size
    split = config.mesh.fsdp * config.mesh.tensor
    policy = parameters(config.policy, vocab, Decoder) * FLOAT_BYTES // split
    reward = parameters(config.reward_model, vocab, RewardModel) * FLOAT_BYTES // split
    # What decodes is put together from fsdp's shards first.
    decoding = policy * config.mesh.fsdp if config.mesh.fsdp > 1 else 0
    table = Table("phase", "sample", "score", "update", "bytes per chip", title="models resident in each RL phase")
    if decoding:
        table.caption = f"{_bytes(decoding)} of it while sampling: the weights that decode, not split over fsdp"
    rows = (
        ("rl-policy", "M_P", "R_P", "M_P, anchor", 5 * policy + reward),
        ("rl-first", "M_PIT", "R_PIT", "M_PIT, anchor", 5 * policy + reward),
        ("rl-second", "M_PIT, M_P^RL for references", "R_PIT", "M_PIT, anchor", 6 * policy + reward),
        ("rl-third", "M_PIT, M_P^RL and RL,1 for references", "R_PIT", "M_PIT, anchor", 7 * policy + reward),
    )
    for name, sampled, scored, updated, size in rows:
        if name not in stages_of(config):
            continue
        table.add_row(name, sampled, scored, updated, _bytes(size + decoding))
    return table


def _bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.2f} MiB"
