"""Adapters: fresh ones change nothing, trained ones are what x A B says, and nothing below them moves."""

import dataclasses
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import path_twins as twins
import pytest
from flax import nnx

from pit.config import AdapterConfig, FieldError, MeshConfig, OptimizerConfig
from pit.data.local import pack_local
from pit.data.packing import pack
from pit.data.template import gap, improver_sft
from pit.model.adapters import (
    DROPOUT,
    MODULES,
    attach,
    merged,
    module_name,
    stacked,
    targets,
    trainable_names,
    with_dropout,
)
from pit.model.decoder import Decoder
from pit.model.families import FAMILIES
from pit.model.heads import RewardModel
from pit.model.low_rank import LowRank
from pit.model.model import Model, adapted, on_base
from pit.model.params import build, copy, merge
from pit.model.sharding import make_mesh, row_sharding, shard_params, spec_of
from pit.rollout.sample import sample
from pit.rollout.strategy import Temperature
from pit.stages.reward import gap_loss
from pit.stages.sft import nll
from pit.train.feed import to_device
from pit.train.update import Update, make_optimizer
from pit.types import Shards

ADAPTER = AdapterConfig(rank=3, alpha=6.0)
DROPS = dataclasses.replace(ADAPTER, dropout=0.5)
LLAMA, GEMMA = (dataclasses.replace(config, layers=1) for config in (twins.LLAMA, twins.GEMMA))
BIASED = dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True)
COLUMNS = [[[4, 5, 6], [7]], [[8, 9], [10, 11, 12]], [[13], [14, 15, 16, 17]]]
(BATCH,) = pack(COLUMNS, improver_sft(), twins.SPLIT)
ROWS = twins.arrays_of(BATCH)

SHAPES = pytest.mark.parametrize(
    "config",
    [LLAMA, *(pytest.param(config, marks=pytest.mark.slow) for config in (GEMMA, BIASED))],
    ids=["llama", "gemma", "biased"],
)


@cache
def base(config):
    """A base whose weights differ from their special initial values."""
    return Model(*twins.random_decoder(config), frozenset())


@cache
def fresh(kind, config, adapter=ADAPTER, seed=7):
    return adapted(kind, config, base(config), adapter, seed)


@cache
def moved(kind, config, adapter=ADAPTER):
    """A model whose adapters and head are random."""
    model, rng = fresh(kind, config, adapter), np.random.default_rng(1)
    return model.with_trained(
        {n: jnp.asarray(rng.normal(0, 0.3, v.shape).astype(np.float32)) for n, v in model.trained.items()}
    )


def hidden(graphdef, params):
    def run(params, rows):
        return merge(graphdef, params)(rows["token"], rows["position"], rows["visible_until"])

    return jax.device_get(twins.jit(run)(params, ROWS))


def scores(graphdef, params):
    (batch,) = pack(COLUMNS, gap(), twins.WHOLE)
    rows = twins.arrays_of(batch)

    def run(params, rows):
        return merge(graphdef, params)(rows["token"], rows["position"], rows["visible_until"], rows["leaf"])

    return jax.device_get(twins.jit(run)(params, rows))


# The term.


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank", "stabilised"), [((4,), (2, 3), 3, False), ((2, 3), (5,), 2, True)]
)
def test_the_term_is_x_a_b_with_its_scale(inputs, outputs, rank, stabilised):
    config = AdapterConfig(rank=rank, alpha=3.0, rank_stabilised=stabilised)
    term, rng = LowRank(inputs, outputs, config, nnx.Rngs(0)), np.random.default_rng(rank)
    x, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 3, *inputs), (rank, *outputs)))
    assert np.all(np.asarray(term(jnp.asarray(x))) == 0)
    term.b[...] = jnp.asarray(b)
    flat_a = np.asarray(term.a[...], np.float64).reshape(-1, rank)
    expected = x.reshape(6, -1) @ flat_a @ b.reshape(rank, -1) * (3 / (rank**0.5 if stabilised else rank))
    np.testing.assert_allclose(term(jnp.asarray(x)), expected.reshape(2, 3, *outputs), rtol=1e-4, atol=1e-5)


def test_a_starts_uniform_as_peft_draws_it_and_b_at_zero():
    units = []
    for name, value in fresh(Decoder, LLAMA).trained.items():
        if name.endswith(".b"):
            assert np.all(np.asarray(value) == 0), name
        else:
            # torch.nn.init.kaiming_uniform_(a=sqrt(5)): uniform within 1 / sqrt(inputs).
            units.append(np.asarray(value).ravel() * np.prod(value.shape[:-1]) ** 0.5)
    together = np.concatenate(units)
    assert 0.95 < np.abs(together).max() <= 1
    assert np.std(together) == pytest.approx(3**-0.5, rel=0.1)
    assert len({unit[0] for unit in units}) == len(units) == 7


def test_adapters_are_a_function_of_the_seed():
    one, other = fresh(Decoder, LLAMA).trained, fresh(Decoder, LLAMA, seed=8).trained
    again = adapted(Decoder, LLAMA, base(LLAMA), ADAPTER, 7).trained
    for name, value in one.items():
        np.testing.assert_array_equal(again[name], value)
        assert name.endswith(".b") or np.any(np.asarray(other[name]) != np.asarray(value)), name


# Targets.


def test_targets_are_whole_names_of_projections():
    assert targets(AdapterConfig(targets=r".*\.(q|v)_proj"), 2) == [
        (layer, name) for layer in range(2) for name in ("attention.q", "attention.v")
    ]
    assert targets(AdapterConfig(targets=r"model\.layers\.1\.mlp\.down_proj"), 2) == [(1, "mlp.down")]
    assert len(targets(AdapterConfig(), 3)) == 21
    message = (
        "adapter.targets = 'q_proj': must match the whole name of a projection of the 2 layers, such as "
        r"model.layers.0.mlp.up_proj; for example adapter.targets=.*\.(q|v)_proj"
    )
    with pytest.raises(FieldError, match=f"^{re.escape(message)}$"):
        targets(AdapterConfig(targets="q_proj"), 2)


def test_adapters_are_where_the_targets_say_and_nowhere_else():
    some = AdapterConfig(rank=2, targets=r".*\.0\..*\.(o|gate)_proj")
    assert set(fresh(Decoder, LLAMA, some).trained) == {
        f"layers.0.{owner}.adapters.{name}.{part}"
        for owner, name in (("attention", "o"), ("mlp", "gate"))
        for part in "ab"
    }


def test_projections_are_modules_of_every_family():
    for family in FAMILIES:
        for name in MODULES:
            assert family.tensors[f"layers.{{}}.{name}"].format(3) == f"{module_name(3, name)}.weight", family.name


# The model.


@SHAPES
def test_fresh_adapters_change_no_bit(config):
    model, plain = fresh(Decoder, config), base(config)
    np.testing.assert_array_equal(hidden(model.graphdef, model.params), hidden(plain.graphdef, plain.params))


@SHAPES
def test_merged_weights_compute_the_same(config):
    model, plain = moved(Decoder, config), base(config)
    weights = merged(model.params, ADAPTER)
    assert weights.keys() == plain.params.keys()
    one, other = hidden(model.graphdef, model.params), hidden(plain.graphdef, weights)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
    # The adapters say something at all.
    assert np.abs(one - hidden(plain.graphdef, plain.params)).max() > 0.1


@pytest.mark.slow
def test_merged_reward_models_score_the_same():
    config = LLAMA
    model = moved(RewardModel, config)
    weights = merged(model.params, ADAPTER)
    one, other = scores(model.graphdef, model.params), scores(twins.graph(RewardModel, config), weights)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert np.any(one != 0)


@pytest.mark.slow
def test_samples_come_from_the_adapted_model():
    model = moved(Decoder, LLAMA)
    prefixes = [[4, 5, 1], [7, 8, 9, 1]]
    drawn = sample(model, prefixes, [0, 1], n=3, capacity=6, strategy=Temperature(1.0), eos_ids=(3,), seed=5)
    taken = [(g, n) for g in range(2) for n in range(3)]
    lengths = [int(drawn.length[place]) for place in taken]
    paths = [
        (*prefixes[g], *drawn.token[g, n, :length].tolist()) for (g, n), length in zip(taken, lengths, strict=True)
    ]

    rows = jax.tree.map(jnp.asarray, twins.rows_of(paths))

    def logp(params):
        return twins.jit(lambda p: twins.path_logp(merge(base(LLAMA).graphdef, p), rows))(params)

    by_merged, by_base = jax.device_get((logp(merged(model.params, ADAPTER)), logp(base(LLAMA).params)))
    for row, ((g, n), length) in enumerate(zip(taken, lengths, strict=True)):
        sampled = slice(len(prefixes[g]), len(prefixes[g]) + length)
        np.testing.assert_allclose(drawn.logp[g, n, :length], by_merged[row, sampled], atol=1e-4)
        assert np.abs(by_merged[row, sampled] - by_base[row, sampled]).max() > 0.01


def test_five_models_hold_one_base():
    plain = base(LLAMA)
    before = {id(array) for array in jax.live_arrays()}
    kinds = (Decoder, Decoder, Decoder, RewardModel, RewardModel)
    models = [adapted(kind, LLAMA, plain, ADAPTER, 100 + number) for number, kind in enumerate(kinds)]
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in new) == sum(v.nbytes for model in models for v in model.trained.values())
    for model in models:
        assert {id(value) for value in model.frozen.values()} == {id(value) for value in plain.params.values()}


# Dropout.


def test_dropout_drops_a_share_of_the_inputs_and_keeps_their_mean():
    term = LowRank((4096,), (4096,), AdapterConfig(rank=4096, alpha=4096.0, dropout=0.25), nnx.Rngs(0))
    term.a[...] = term.b[...] = jnp.eye(4096)
    x = jnp.ones((2, 4096))
    assert np.all(np.asarray(term(x)) == 1)
    term.key = jnp.array([0, 1], jnp.uint32)
    y = np.asarray(term(x))
    assert set(np.unique(y).tolist()) == {0.0, float(np.float32(1 / 0.75))}
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.02)
    assert np.mean(y[0] == y[1]) < 0.7, "both rows were dropped alike"


def test_every_adapter_of_every_pass_drops_other_inputs():
    config, adapter = LLAMA, AdapterConfig(rank=3, dropout=0.5)
    model = moved(Decoder, config, adapter)

    def keys_of(batch):
        module = with_dropout(model.merge(), batch)
        return [t.key for _, t in nnx.iter_modules(module) if isinstance(t, LowRank)]

    first, second = (keys_of({DROPOUT: np.array([0, n], np.uint32)}) for n in (1, 2))
    every = {tuple(np.asarray(key).tolist()) for key in (*first, *second)}
    assert len(every) == len(first) + len(second) == 14
    assert keys_of({}) == [None] * 7


def test_losses_drop_inputs_in_training_alone():
    adapter = DROPS
    model = moved(Decoder, LLAMA, adapter)
    loss = twins.jit(lambda params, rows: nll(model.graphdef)(params, rows)[0].sum)
    key = {n: {**ROWS, DROPOUT: np.array([0, n], np.uint32)} for n in (1, 2)}
    still, one, again, two = (float(loss(model.params, rows)) for rows in (ROWS, key[1], key[1], key[2]))
    assert one == again
    assert len({still, one, two}) == 3
    plain = moved(Decoder, LLAMA)
    assert still == float(twins.jit(lambda p, rows: nll(plain.graphdef)(p, rows)[0].sum)(plain.params, ROWS))


@pytest.mark.slow
def test_recomputed_activations_drop_the_same_inputs():
    adapter = DROPS
    grads = []
    for remat in ("none", "full"):
        config = dataclasses.replace(LLAMA, remat=remat)
        model = moved(Decoder, LLAMA, adapter)
        graphdef = fresh(Decoder, config, adapter).graphdef if remat == "full" else model.graphdef
        rows = {**ROWS, DROPOUT: np.array([0, 1], np.uint32)}
        loss = jax.grad(lambda p, graphdef=graphdef, rows=rows: nll(graphdef)(p, rows)[0].sum)
        grads.append(jax.device_get(twins.jit(loss)(model.params)))
    for name, grad in grads[0].items():
        np.testing.assert_allclose(grads[1][name], grad, rtol=1e-4, atol=1e-5, err_msg=name)


# Training.


@cache
def gap_batch(mesh=None):
    (batch,) = pack(COLUMNS, gap(), twins.WHOLE)
    return twins.arrays_of(batch)


@cache
def update_of(kind):
    """The update of a model on the base of LLAMA, compiled once."""
    model = fresh(kind, LLAMA)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, warmup_steps=0), 9)
    return Update(gap_loss(model.graphdef), optimizer, model.frozen)


def test_gradients_reach_the_trainable_alone():
    model = moved(RewardModel, LLAMA)
    sums = update_of(RewardModel).sums(model.trained, gap_batch())
    assert sums.grads.keys() == model.trainable == trainable_names(model.params)
    for name, grad in sums.grads.items():
        assert np.any(np.asarray(grad) != 0), name


@pytest.mark.slow
def test_gradients_are_those_of_all_weights():
    model = moved(RewardModel, LLAMA)
    sums = update_of(RewardModel).sums(model.trained, gap_batch())
    whole = Update(gap_loss(model.graphdef), optax.sgd(0.1)).sums(model.params, gap_batch())
    for name, grad in sums.grads.items():
        np.testing.assert_allclose(grad, whole.grads[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_base_is_neither_changed_nor_consumed_by_training():
    model = fresh(RewardModel, LLAMA)
    before = jax.tree.map(np.array, model.params)
    update = update_of(RewardModel)
    state = update.start(model.copy().trained)
    for _ in range(2):
        state, _ = update(state, [gap_batch(), gap_batch()])
    for name, value in base(LLAMA).params.items():
        assert model.params[f"decoder.{name}"] is value
        np.testing.assert_array_equal(value, before[f"decoder.{name}"])
    assert state.params.keys() == model.trainable
    for name, value in state.params.items():
        assert np.any(np.asarray(value) != before[name]), name
        np.testing.assert_array_equal(model.params[name], before[name], err_msg="the start was consumed")
    sizes = {np.shape(leaf) for leaf in jax.tree.leaves(state.optimizer)}
    assert sizes == {()} | {value.shape for value in state.params.values()}, "moments of frozen weights"


def test_a_bfloat16_base_has_float32_adapters_and_moments():
    low = {name: value.astype(jnp.bfloat16) for name, value in base(GEMMA).params.items()}
    exact = fresh(RewardModel, GEMMA)
    rough = exact.with_params(on_base(base(GEMMA).with_params(low), exact.trained))
    loss = gap_loss(rough.graphdef)
    # Shapes alone are computed here: a dtype that does not fit fails while it is traced.
    grads = jax.eval_shape(jax.grad(lambda p: loss({**rough.frozen, **p}, gap_batch())[0].sum), rough.trained)
    moments = make_optimizer(OptimizerConfig(), 9).init(rough.trained)
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, moments))} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert {value.dtype for value in rough.frozen.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_a_bfloat16_base_stays_near_a_float32_one():
    plain = base(GEMMA)
    low = {name: value.astype(jnp.bfloat16) for name, value in plain.params.items()}
    exact, rough = hidden(plain.graphdef, plain.params), hidden(plain.graphdef, low)
    assert 0 < np.linalg.norm(rough - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=2), MeshConfig(tensor=2)], ids=["fsdp", "tensor"])
@pytest.mark.slow
def test_split_adapters_make_the_step_of_whole_ones(mesh):
    model, devices = moved(RewardModel, LLAMA), make_mesh(mesh)
    half = dataclasses.replace(twins.WHOLE, rows=2, trees=2) if mesh.shards == 2 else twins.WHOLE
    (batch,) = pack_local(COLUMNS, gap(), half, Shards.all_local(mesh.shards))
    results = []
    for each, arrays in (
        (model, gap_batch()),
        (model.with_params(shard_params(model.params, devices)), to_device(batch, row_sharding(devices))),
    ):
        update = Update(gap_loss(model.graphdef), optax.sgd(0.5), each.frozen)
        results.append(jax.device_get(update(update.start(copy(each.trained)), [arrays])[0].params))
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=0, atol=1e-4 * max(1, np.abs(value).max()))


def test_every_adapter_has_a_place_on_the_mesh():
    model = fresh(RewardModel, LLAMA)
    for name, value in model.trained.items():
        if name != "score":
            spec, weight = spec_of(name), spec_of(name.rpartition(".")[0].replace("adapters.", ""))
            kept = tuple(weight)[: value.ndim - 1] if name.endswith("a") else tuple(weight)[1 - value.ndim :]
            assert tuple(spec) == ((*kept, None) if name.endswith("a") else (None, *kept)), name


def test_attaching_adds_parameters_and_renames_none():
    module = merge(*build(Decoder, LLAMA, twins.VOCAB, 0))
    before = set(base(LLAMA).params)
    attach(module, ADAPTER, nnx.Rngs(0))
    after = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    assert after - trainable_names(after) == before
    assert trainable_names(after) == after - before != set()


@pytest.mark.parametrize("kind", [Decoder, RewardModel], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("lower_targets", [ADAPTER.targets, r".*\.(q|o|up)_proj"])
@pytest.mark.parametrize("upper_targets", [ADAPTER.targets, r".*\.(v|o|down)_proj"])
def test_one_adapter_adds_what_two_add(kind, lower_targets, upper_targets):
    """Merged at once, or one after the other: the same weights."""
    lower = dataclasses.replace(ADAPTER, rank_stabilised=True, targets=lower_targets)
    upper = AdapterConfig(rank=2, alpha=5.0, dropout=0.25, targets=upper_targets)
    under, over = moved(Decoder, LLAMA, lower).trained, moved(kind, LLAMA, upper).trained
    first = Model(base(LLAMA).graphdef, merged({**base(LLAMA).params, **under}, lower), frozenset())
    expected = merged(on_base(first, over), upper)
    adapter, params = stacked(under, lower, over, upper)
    assert (adapter.rank, adapter.scale, adapter.dropout) == (5, 1.0, 0.25)
    assert params.keys() == fresh(kind, LLAMA, adapter).trained.keys()
    together = merged(on_base(base(LLAMA), params), adapter)
    assert together.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(together[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
