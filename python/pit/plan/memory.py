"""Memory of a stage on a chip, counted from shapes: models, what trains, and what a backward pass keeps.

Nothing is compiled: what a backward pass keeps are the residuals of JAX's own transformation of the stage's loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pit.config import MeshConfig, RunConfig
from pit.data.template import Template
from pit.model.adapters import trainable_names
from pit.model.sharding import make_mesh
from pit.plan.programs import STEPS, Setting, programs_of
from pit.plan.sizes import parameters, shapes_of_model, vocabulary
from pit.run.stage import DECODER, Kind, Stage
from pit.train.update import make_optimizer

FLOAT_BYTES = 4


def chip_bytes(config: RunConfig, kind: Kind) -> int:
    """Return the bytes of a model's weights on one chip, in float32."""
    return parameters(kind.config(config), vocabulary(config), kind.module) * FLOAT_BYTES // _split(config)


def trained_shapes(config: RunConfig, stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of the weights that a stage trains: its adapters and head, or the whole model."""
    adapter = stage.adapter(config)
    shapes = shapes_of_model(stage.trains.config(config), vocabulary(config), stage.trains.module, adapter)
    return {name: shapes[name] for name in (shapes if adapter is None else trainable_names(shapes))}


def trained_bytes(config: RunConfig, stage: Stage) -> int:
    """Return the bytes on one chip of the weights that a stage trains, of their gradient and of the optimizer."""
    shapes, section = trained_shapes(config, stage), stage.settings(config)
    optimizer = jax.eval_shape(make_optimizer(section.optimizer, section.steps or STEPS).init, shapes)
    return (2 * _nbytes(shapes) + _nbytes(optimizer)) // _split(config)


def held_bytes(config: RunConfig, stage: Stage) -> int:
    """Return the bytes on one chip of the other models of a stage, one per stage among its inputs.

    Models with adapters hold their base once; that of the trained adapters is part of it.
    """
    inputs = stage.inputs(config)
    others = {source.name: source for role, source in inputs.items() if role != "start"}
    size = sum(_nbytes(trained_shapes(config, source)) for source in others.values()) // _split(config)
    if any(each.adapter(config) is not None for each in (stage, *others.values())):
        size += chip_bytes(config, DECODER) * jnp.dtype(config.base.dtype).itemsize // FLOAT_BYTES
    return size


def kept_bytes(config: RunConfig, stage: Stage, template: Template | None) -> int:
    """Return the bytes that a microbatch keeps for its backward pass, of one shard's rows, not split over tensor.

    Weights as products read them are among it where they are copied: cast, or stacked for a loop over layers.

    Args:
        config: the run.
        stage: the stage.
        template: template of the run's chat format, None in role tokens.
    """
    alone = dataclasses.replace(config, mesh=MeshConfig())
    mesh = make_mesh(alone.mesh)
    setting = Setting.of(alone, mesh, template)
    programs = [placed.program for placed in programs_of(stage, setting)]
    arguments = next(program for program in programs if program.name.startswith("gradient")).arguments
    loss = stage.loss(setting.model(stage).graphdef, alone, setting.capacity)

    def kept(params: Any, frozen: Any, batch: Any) -> Any:
        return jax.vjp(lambda trained: loss({**frozen, **trained}, batch)[0].sum, params)[1]

    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(kept)(*arguments[:2], arguments[-1]).jaxpr
    given = set(map(id, jaxpr.invars))
    values = {id(value): value.aval for value in jaxpr.outvars if id(value) not in given}
    return _nbytes(list(values.values()))


def _split(config: RunConfig) -> int:
    """Return the number of chips that a weight is split over."""
    return config.mesh.fsdp * config.mesh.tensor


def _nbytes(arrays: Any) -> int:
    size: int = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
    return size
