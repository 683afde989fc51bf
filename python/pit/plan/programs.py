"""Programs of a stage, as its owners hand them out, with all that lies on the chips while each of them runs."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pit.config import ImproverRlConfig, RlConfig, RunConfig
from pit.data.packing import Layout
from pit.data.template import Template
from pit.model.adapters import DROPOUT, trainable_names
from pit.model.model import Model, gathered, on_base
from pit.model.params import Params, abstract
from pit.model.programs import Program, shape_of
from pit.model.sharding import place, row_sharding
from pit.plan.account import bytes_on_chip
from pit.plan.sizes import rollout_sizes, slots_per_step, tree_limit, vocabulary
from pit.rl.algorithms import algorithm_of
from pit.rl.readings import PolicyAndAnchor
from pit.rl.reward import model_programs
from pit.rl.step import packed_shapes
from pit.rollout.engine import decode_program
from pit.rollout.prefill import prefill_program
from pit.rollout.strategy import Temperature
from pit.run.stage import ANCHORED, DECODER, Stage
from pit.train.feed import shapes_of
from pit.train.update import Evaluation, Update, make_optimizer
from pit.types import Closings

STEPS = 1000
"""Steps of a schedule whose number is not known yet; no shape depends on it."""


# Stages share few shapes of models, and a deep one takes a second to make.
_abstract = cache(abstract)


class Placed(NamedTuple):
    """A program, and what lies on the chips while it runs: its arguments may be among it, and count once."""

    program: Program
    alive: Any

    @property
    def beside_bytes(self) -> int:
        """Bytes on a chip of what is alive and no argument."""
        arguments = {id(leaf) for leaf in jax.tree.leaves(self.program.arguments)}
        others = {id(leaf): leaf for leaf in jax.tree.leaves(self.alive) if id(leaf) not in arguments}
        return sum(map(bytes_on_chip, others.values()))


@dataclass(frozen=True)
class Setting:
    """Everything that the shapes of a run's programs follow from.

    base: the frozen weights that all adapters of the run share, as shapes.
    """

    config: RunConfig
    mesh: Mesh
    template: Template | None
    vocab_size: int
    base: Params

    @classmethod
    def of(cls, config: RunConfig, mesh: Mesh, template: Template | None) -> "Setting":
        """Return the setting of a run on a mesh; `template` is that of its chat format, None in role tokens."""
        vocab_size = vocabulary(config)
        _, shapes = _abstract(DECODER.module, DECODER.config(config), vocab_size, None)
        dtype = jnp.dtype(config.base.dtype)
        base = place({name: jax.ShapeDtypeStruct(x.shape, dtype) for name, x in shapes.items()}, mesh)
        return cls(config, mesh, template, vocab_size, base)  # type: ignore[arg-type]

    @property
    def capacity(self) -> int:
        """Most tokens of a sample."""
        return self.config.windows.output - 1 if self.template is None else self.template.capacity

    def layout(self, section: Any) -> Layout:
        """Return the layout of packed rows of a section; their tokens are not known."""
        packing = section.packing
        return Layout(Closings.roles(0, 0, 0), 0, packing.row_length, packing.rows, packing.trees)

    def model(self, stage: Stage) -> Model[Any]:
        """Return the model of a stage, with shapes in the place of its weights."""
        adapter = stage.adapter(self.config)
        graphdef, shapes = _abstract(stage.trains.module, stage.trains.config(self.config), self.vocab_size, adapter)
        if adapter is None:
            return Model(graphdef, place(shapes, self.mesh))  # type: ignore[arg-type]
        trained = place({name: shapes[name] for name in trainable_names(shapes)}, self.mesh)
        base = Model(graphdef, self.base)
        return Model(graphdef, on_base(base, trained), frozenset(trained))  # type: ignore[arg-type]


def programs_of(stage: Stage, setting: Setting) -> list[Placed]:
    """Return the programs of a stage in the order of a step."""
    if stage.maximises(setting.config):
        return _reinforced(stage, setting)
    section, model = stage.settings(setting.config), setting.model(stage)
    loss = stage.loss(model.graphdef, setting.config, setting.capacity)
    batch = shapes_of(stage.topology(setting.config), setting.layout(section), row_sharding(setting.mesh))
    anchor: list[Program] = []
    if stage.anchored is not None:
        reference = setting.model(stage.inputs(setting.config)["anchor"])
        read = jax.jit(stage.anchored(reference.graphdef))
        with reference.on_mesh():
            values = jax.eval_shape(read, reference.params, batch)
        anchor.append(Program("anchor", read, (reference.params, batch)))
        batch = batch | {ANCHORED: shape_of(values, row_sharding(setting.mesh))}
    trained = batch
    if section.adapter is not None and section.adapter.dropout:
        trained = batch | {DROPOUT: jax.ShapeDtypeStruct((2,), jnp.uint32)}
    update = Update(loss, make_optimizer(section.optimizer, section.steps or STEPS), model.frozen)
    state = update.shapes(model.trained)  # type: ignore[arg-type]
    programs = anchor + update.programs(state, trained, accumulates=section.packing.microbatches > 1)
    alive = state, model.frozen, batch, [program.arguments[0] for program in anchor]
    programs.append(Evaluation(loss, model.frozen).program(state.params, batch))
    return [Placed(program, alive) for program in programs]


def _reinforced(stage: Stage, setting: Setting) -> list[Placed]:
    """Return the programs of an RL stage: of its rollout, of scores and readings, of its update."""
    config, mesh = setting.config, setting.mesh
    section: RlConfig = stage.settings(config)
    inputs, model, layout = stage.inputs(config), setting.model(stage), setting.layout(section)
    models = {source.name: setting.model(source) for role, source in inputs.items() if role != "start"}
    loss = stage.loss(model.graphdef, config, setting.capacity)
    update = Update(loss, make_optimizer(section.optimizer, section.steps), model.frozen)
    state = update.shapes(model.trained)  # type: ignore[arg-type]
    weights = {**model.frozen, **state.params}
    alive = state, weights, [each.params for each in models.values()]

    referenced = isinstance(section, ImproverRlConfig)
    batch = packed_shapes(section.samples, layout, row_sharding(mesh), referenced=referenced)
    anchor = models[inputs["anchor"].name]
    readings = PolicyAndAnchor(model.graphdef, section, anchor.params, setting.capacity)
    reading, anchored = readings.programs(weights, batch)
    algorithm = algorithm_of(section, stage.section)(model.graphdef, section, setting.capacity)
    microbatch, per_update = algorithm.shapes(batch, anchored), microbatches(stage, setting, algorithm.minibatches)
    count = per_update * algorithm.minibatches
    # The first one is an argument; all others wait on the chips. A table of the anchor's is its own.
    shared = {id(leaf) for leaf in jax.tree.leaves(alive)}
    waiting = [x for x in microbatch.values() if id(x) not in shared]
    packed = alive, [[shape_of(x, x.sharding) for x in waiting] for _ in range(count - 1)]
    planned = _rollouts(stage, setting, model.with_params(weights), alive)
    if "reward" in inputs:
        form = section.gap if isinstance(section, ImproverRlConfig) else None
        scores = model_programs(models[inputs["reward"].name], layout, form, section.samples)
        planned += [Placed(program, packed) for program in scores]
    if "ranker" in inputs:
        assert isinstance(section, ImproverRlConfig)
        drafts = model_programs(models[inputs["ranker"].name], layout, None, section.drafts)
        planned += [Placed(replace(program, name=f"drafts: {program.name}"), alive) for program in drafts]
    planned += [Placed(program, (packed, batch)) for program in reading]
    programs = update.programs(state, microbatch, accumulates=per_update > 1)
    return planned + [Placed(program, (packed, microbatch)) for program in programs]


def microbatches(stage: Stage, setting: Setting, minibatches: int) -> int:
    """Return the microbatches of one of a rollout's minibatches, if every tree fills its windows."""
    section: RlConfig = stage.settings(setting.config)
    tokens = -(-section.prompts // minibatches) * tree_limit(setting.config, stage, setting.template)
    slots = slots_per_step(section.packing, setting.config.mesh.shards) // section.packing.microbatches
    return max(1, -(-tokens // slots))


def _rollouts(stage: Stage, setting: Setting, model: Model[Any], alive: Any) -> list[Placed]:
    """Return the programs that sample: of a step, and of the held-out prompts that do not fill a call of its size."""
    config, section = setting.config, stage.settings(setting.config)
    whole = gathered(model)
    held_out = section.evaluate_prompts % section.prompts if section.evaluate_every else 0
    calls = {"": section.prompts} | ({"held-out ": held_out} if held_out else {})
    planned = []
    for name, prompts in calls.items():
        sizes = rollout_sizes(config, stage, setting.template, prompts)
        read, prefixes = prefill_program(whole, sizes)
        # The ids that end a sample are data to the program.
        draw = decode_program(whole, prefixes, sizes, Temperature(section.temperature), (0,))
        for program in (read, draw):
            planned.append(Placed(replace(program, name=f"{name}{program.name}"), alive))
    return planned
