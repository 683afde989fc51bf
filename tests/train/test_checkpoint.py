"""Checkpoints give back the same bits, refuse another architecture, and notice every truncated file."""

import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit.config import MeshConfig, OptimizerConfig
from pit.losses.total import Total
from pit.model.sharding import make_mesh, row_sharding, shard_params
from pit.train.checkpoint import CheckpointError, Checkpoints
from pit.train.update import Update, make_optimizer

LOADER = {"state": {"planner": "AAEC", "step": 7}, "draws": bytes(range(256))}
CONTROLLERS = {"beta": 0.1 + 0.2, "scores": [3, 1e-17, 2.0 / 3.0]}
META = {"hash": "ab", "tokens": 12}


def loss(params, batch):
    hidden = batch["x"] @ params["layers.0.mlp.gate"] * params["final_norm.scale"][None, :]
    return Total(jnp.sum((hidden - batch["y"]) ** 2), jnp.float32(len(batch["x"]))), {}


UPDATE = Update(loss, make_optimizer(OptimizerConfig(warmup_steps=2), 20))


def fresh(width=4):
    rng = np.random.default_rng(0)
    return {
        "layers.0.mlp.gate": jnp.asarray(rng.normal(size=(4, width)).astype(np.float32)),
        "final_norm.scale": jnp.ones(width, jnp.float32),
    }


def batch(step, sharding=None):
    rng = np.random.default_rng(step)
    arrays = {name: rng.normal(size=(6, 4)).astype(np.float32) for name in ("x", "y")}
    return {name: jax.device_put(value, sharding) for name, value in arrays.items()}


def run(state, first, last, sharding=None):
    for step in range(first, last):
        state, _ = UPDATE(state, [batch(step, sharding)])
    return state


def assert_equal_bits(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoint of step 3, and the state it holds."""
    folder = tmp_path_factory.mktemp("saved")
    state = run(UPDATE.start(fresh()), 0, 3)
    with Checkpoints(folder, keep=2) as checkpoints:
        checkpoints.save(state, LOADER, CONTROLLERS, META)
    return folder, state


def test_a_checkpoint_gives_back_weights_optimizer_and_meta(saved):
    folder, state = saved
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest == 3
        restored = checkpoints.restore(UPDATE.start(fresh()), META["hash"])
        assert_equal_bits(restored.state, state)
        assert restored.loader == LOADER
        assert restored.controllers == CONTROLLERS
        assert {name: restored.meta[name] for name in META} == META
        assert_equal_bits(checkpoints.restore_params(fresh(), 3, META["hash"]), state.params)


def test_steps_taken_while_a_checkpoint_is_written_do_not_reach_it(tmp_path):
    def start():
        return UPDATE.start({**fresh(), "rest": jnp.zeros(2**20)})

    state = run(start(), 0, 1)
    expected = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state, LOADER, CONTROLLERS, META)
        # Each step gives the buffers that are being written to the next one.
        run(state, 1, 9)
        checkpoints.wait()
        assert_equal_bits(checkpoints.restore(start(), META["hash"]).state, expected)


def test_an_empty_folder_restores_nothing_and_has_no_weights(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.latest is None
        assert checkpoints.restore(UPDATE.start(fresh()), META["hash"]) is None
        message = f"^{tmp_path}: its newest checkpoint is None, but the stage finished at step 3; put 3 back, or delete"
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore_params(fresh(), 3, META["hash"])


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2), MeshConfig(fsdp=2)], ids=["one", "data", "fsdp"])
def test_resumed_steps_have_the_bits_of_uninterrupted_ones(tmp_path, mesh):
    def start():
        return UPDATE.start(fresh() if mesh is None else shard_params(fresh(), make_mesh(mesh)))

    sharding = None if mesh is None else row_sharding(make_mesh(mesh))
    whole = run(start(), 0, 5, sharding)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(run(start(), 0, 2, sharding), LOADER, CONTROLLERS, META)
        checkpoints.wait()
        restored = checkpoints.restore(start(), META["hash"]).state
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(start()), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    assert_equal_bits(run(restored, 2, 5, sharding), whole)


def test_only_the_newest_are_kept_and_a_saved_step_is_left_alone(tmp_path):
    state, weights = UPDATE.start(fresh()), []
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(state, {"at": step}, {}, META)
            weights.append(jax.device_get(state.params))
            state = run(state, step, step + 1)
        checkpoints.save(state._replace(step=jnp.int32(3)), {"at": "again"}, {}, META)
        checkpoints.wait()
        assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [2, 3]
        assert checkpoints.steps == [2, 3]
        assert_equal_bits(checkpoints.restore_params(fresh(), 3, META["hash"]), weights[3])
        with pytest.raises(CheckpointError, match="its newest checkpoint is 3, but the stage finished at step 2"):
            checkpoints.restore_params(fresh(), 2, META["hash"])
        assert checkpoints.restore(UPDATE.start(fresh()), META["hash"]).loader == {"at": 3}


def test_a_checkpoint_made_from_something_else_is_refused_not_mixed(saved):
    folder, _ = saved
    message = (
        rf"^{folder}/3: was trained on other data or with another config \(hash ab, now cd\); choose another --out"
    )
    with Checkpoints(folder, keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(UPDATE.start(fresh()), "cd")
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore_params(fresh(), 3, "cd")


def test_trained_weights_of_another_base_are_refused_by_name(tmp_path):
    with Checkpoints(tmp_path, keep=1, base="ab") as checkpoints:
        checkpoints.save(UPDATE.start(fresh()), LOADER, CONTROLLERS, META)
        checkpoints.wait()
        assert checkpoints.restore_params(fresh(), 0, META["hash"]).keys() == fresh().keys()
    for base in ("cd", ""):
        message = (
            rf"^{tmp_path}/0: base = 'ab': its adapters were trained on that base, but the run has base '{base}'; use "
            "the base that they were trained on, or another output folder$"
        )
        with Checkpoints(tmp_path, keep=1, base=base) as checkpoints:
            with pytest.raises(CheckpointError, match=message):
                checkpoints.restore_params(fresh(), 0, META["hash"])
            with pytest.raises(CheckpointError, match=message):
                checkpoints.restore(UPDATE.start(fresh()), META["hash"])


def test_a_step_that_cannot_be_written_is_an_error(tmp_path):
    state = UPDATE.start(fresh())
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(state._replace(step=jnp.int32(3)), LOADER, CONTROLLERS, META)
        checkpoints.wait()
        with pytest.raises(CheckpointError, match="step 2 was not written, because step 3 is there already"):
            checkpoints.save(state._replace(step=jnp.int32(2)), LOADER, CONTROLLERS, META)


def test_another_architecture_is_refused_with_both_shapes(saved):
    folder, _ = saved
    other = fresh(width=5)
    message = (
        rf"^{folder}/3: parameter final_norm\.scale has shape \[4\] there, but the config asks for \[5\]; use the "
        "config that wrote it, or another output folder$"
    )
    with Checkpoints(folder, keep=2) as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore_params(other, 3, META["hash"])
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore(UPDATE.start(other), META["hash"])
        with pytest.raises(CheckpointError, match=r"parameter extra\.scale has shape None there.* asks for \[2\]"):
            checkpoints.restore_params({**fresh(), "extra.scale": jnp.ones(2)}, 3, META["hash"])


def files_of(folder):
    return sorted(p.relative_to(folder) for p in (folder / "3").rglob("*") if p.is_file() and p.stat().st_size)


def restored_or_message(checkpoints):
    try:
        return checkpoints.restore(UPDATE.start(fresh()), META["hash"]), ""
    except CheckpointError as error:
        return None, str(error)


# A failed read leaves tasks of Orbax's event loop behind, which complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_truncated_file_is_noticed_or_not_needed(saved, tmp_path, part):
    folder, state = saved
    noticed = set()
    for number, name in enumerate(files_of(folder)):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: int(len(content) * part)])
        with Checkpoints(copy, keep=2) as checkpoints:
            restored, message = restored_or_message(checkpoints)
        if restored is None:
            assert "it is truncated or damaged: delete that folder" in message, name
            noticed.add(name.parts[1])
        else:
            assert_equal_bits(restored.state, state)
            assert restored.loader == LOADER, name
            assert restored.controllers == CONTROLLERS, name
            assert restored.meta["hash"] == META["hash"], name
    gc.collect()
    assert {"params", "opt", "loader", "curriculum", "controllers", "meta"} <= noticed
