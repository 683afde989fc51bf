"""Planned programs are those of training: on a mesh, a stage calls its functions with the very shapes of the plan."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pit.config import MeshConfig, OptimizerConfig, override
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.model.sharding import make_mesh
from pit.plan.programs import Setting, programs_of
from pit.recipes.demo import tiny
from pit.run.folder import Run
from pit.run.stage import Services
from pit.stages import reward, rl, sft
from pit.stages.prepare import prepare
from pit.train.update import Update, make_optimizer

# The texts of the recipe fill a vocabulary of this size, so that a plan knows it before there is a tokenizer.
MESH = ["mesh.fsdp=2", "tokenizer.vocab_size=448"]


def summary(tree):
    """Return shapes, dtypes and places (where an argument has one on a mesh) of arrays, or of shapes."""

    def place(sharding, rank):
        # A spec may leave out trailing axes that are whole, and mesh axes of one device.
        sizes = sharding.mesh.shape
        split = (*sharding.spec, *(None,) * (rank - len(sharding.spec)))
        names = [() if axis is None else (axis,) if isinstance(axis, str) else axis for axis in split]
        return tuple(tuple(name for name in axis if sizes[name] > 1) for axis in names)

    def of(x):
        sharding = getattr(x, "sharding", None)
        on_mesh = isinstance(sharding, jax.sharding.NamedSharding)
        return tuple(x.shape), str(jnp.dtype(x.dtype)), place(sharding, len(x.shape)) if on_mesh else None

    return jax.tree.map(of, tree)


def planned(config, stage):
    mesh = make_mesh(config.mesh)
    return {placed.program.name: placed for placed in programs_of(stage, Setting.of(config, mesh, None))}


@pytest.mark.parametrize("moments", ["full", "factored"])
def test_the_shapes_of_a_state_lie_as_the_state_does(moments):
    config = override(tiny(), ["policy.qkv_bias=true"])
    mesh = make_mesh(MeshConfig(tensor=2))
    shape = dataclasses.replace(config.policy, heads=4, kv_heads=2, width=128, mlp=256)
    model = Model.build(Decoder, shape, 64, 0).sharded(mesh)
    settings = OptimizerConfig(moments=moments, b1=0.0 if moments == "factored" else 0.9)
    update = Update(lambda params, batch: None, make_optimizer(settings, 10))
    _, shapes = Model.abstract(Decoder, shape, 64, mesh)
    expected = summary(update.start(model.copy().params))
    assert summary(update.shapes(shapes)) == expected


class Calls:
    """Calls of jitted functions by name, with shapes in the place of arrays."""

    def __init__(self):
        self.seen = {}

    def watch(self, monkeypatch, owner, names):
        """Record the calls of functions that a class makes in its constructor."""
        made = owner.__init__

        def make(instance, *arguments, **options):
            made(instance, *arguments, **options)
            for attribute, name in names.items():
                setattr(instance, attribute, self.recorded(getattr(instance, attribute), name))

        monkeypatch.setattr(owner, "__init__", make)

    def recorded(self, function, name):
        calls = self

        class Recorded:
            def __call__(self, *arguments):
                # The function may also be traced inside another one.
                if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
                    calls.seen.setdefault(name, summary(arguments))
                return function(*arguments)

            def __getattr__(self, attribute):
                return getattr(function, attribute)

        return Recorded()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    settings = [*MESH, "rl_improver_0.steps=1", "rl_improver_0.kl.estimator=k3", "sft_policy.packing.microbatches=2"]
    run = Run(tmp_path_factory.mktemp("plan") / "run", override(tiny(), [*settings, "sft_policy.evaluate_every=2"]))
    prepare(run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("stage", [sft.POLICY, reward.GAP, rl.IMPROVER_0], ids=lambda stage: stage.name)
def test_a_stage_calls_its_functions_with_the_planned_shapes(stage, prepared, fresh_stages, monkeypatch):
    from pit.rl.readings import PolicyAndAnchor
    from pit.rollout.score import ModelScorer
    from pit.train.update import Evaluation

    calls = Calls()
    calls.watch(monkeypatch, Update, {"_only": "gradient", "_more": "gradient, added", "_apply": "optimizer"})
    calls.watch(monkeypatch, Evaluation, {"_loss": "held-out loss"})
    calls.watch(monkeypatch, PolicyAndAnchor, {"_read": "policy and anchor"})
    calls.watch(monkeypatch, ModelScorer, {"_score": "scores"})
    stage.work(prepared, Services())
    programs = planned(prepared.config, stage)
    expected = {
        "sft-policy": {"gradient, added", "optimizer", "held-out loss"},
        "reward-gap": {"gradient", "optimizer"},
    }
    assert calls.seen.keys() >= expected.get(stage.name, {"policy and anchor", "scores", "gradient", "optimizer"})
    for name, arguments in calls.seen.items():
        assert arguments == summary(programs[name].program.arguments), name


def test_memory_beside_a_program_leaves_out_its_arguments_and_counts_shared_arrays_once():
    config = override(tiny(), [*MESH, *(f"{name}.adapter.rank=2" for name in ("sft_policy", "rl_policy"))])
    programs = planned(config, rl.POLICY)
    trained = 2 * (64 + 48) + 3 * 96
    mesh = make_mesh(config.mesh)
    setting = Setting.of(config, mesh, None)
    model, judge = setting.model(rl.POLICY), setting.model(reward.QUALITY)
    assert sum(x.size for x in model.trained.values()) == trained

    def on_chip(arrays):
        return sum(x.dtype.itemsize * jnp.prod(jnp.array(x.sharding.shard_shape(x.shape))).item() for x in arrays)

    adapters, base = on_chip(model.trained.values()), on_chip(model.frozen.values())
    # Two moments, the anchor's adapters and R_P; weights and base are arguments of the readings.
    readings = programs["policy and anchor"].beside_bytes
    counters = 4 * 4
    assert readings == pytest.approx(3 * adapters + on_chip(judge.params.values()), abs=counters)
    # The optimizer reads its own state and adapters alone, beside the base.
    optimizer = programs["optimizer"].beside_bytes
    assert optimizer > base + adapters + on_chip(judge.params.values())
