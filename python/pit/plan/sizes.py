"""Sizes of a run, counted from its config: parameters, vocabulary, tokens of a step and a tree, rollouts."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from pit.config import AdapterConfig, ModelConfig, PackingConfig, RunConfig
from pit.data.template import Template
from pit.data.tokenizer import Tokenizer
from pit.model.decoder import Decoder
from pit.model.heads import RewardModel
from pit.model.params import abstract
from pit.rollout.sizes import Sizes, sizes_of
from pit.run.base import pretrained_of
from pit.run.stage import Stage
from pit.stages.graph import stages_of


@functools.cache
def shapes_of_model(
    config: ModelConfig, vocab_size: int, kind: type[Any], adapter: AdapterConfig | None = None
) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the parameters of a model of a kind: Decoder or RewardModel."""
    return MappingProxyType(abstract(kind, config, vocab_size, adapter)[1])


def parameters(config: ModelConfig, vocab_size: int, kind: type[Decoder] | type[RewardModel]) -> int:
    """Return the number of parameters of a model, from its shapes alone."""
    return sum(shape.size for shape in shapes_of_model(config, vocab_size, kind).values())


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


def slots_per_step(packing: PackingConfig, shards: int) -> int:
    """Return the token slots of one step, padding included."""
    return packing.row_length * packing.rows * packing.microbatches * shards


def tree_limit(config: RunConfig, stage: Stage, template: Template | None) -> int:
    """Return the most tokens of one tree of a stage; those of the windows in role tokens."""
    if template is not None:
        return template.tree(stage.topology(config))
    windows = (config.windows.input, config.windows.reference, config.windows.output)
    return sum(windows[segment.kind] for segment in stage.topology(config).segments)


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
