"""Leaf scores against norm and head on every token, on every backend, and the algebra of the gaps."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import INTERPRET, QUICK, no_races
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from tpu_programs import compile_for, mesh, needs_libtpu

from pit_kernels import UnsupportedImplementationError, centred_gap, device, leaf_scores, symmetric_gap
from pit_kernels.gap_reward import reference
from pit_kernels.gap_reward.scatter_tpu import NOWHERE, scatter, steps
from pit_kernels.gap_reward.tiles import Tiles
from pit_kernels.partition import Partition

G, L = 3, 4
SHAPES = {"xla": (2, 7, 5), "pallas_tpu": (2, 16, 128)}
"""Shape of the hidden states for each backend: B rows of T tokens of width D; the kernels take whole tiles only."""
BACKENDS = {"xla": {"implementation": "xla"}, "pallas_tpu": {"implementation": "pallas_tpu", "interpret": INTERPRET}}
BOTH = pytest.mark.parametrize("which", BACKENDS)
B, T, D = SHAPES["xla"]


def leaves(which, slots=G * L):
    rows, length, _ = SHAPES[which]
    leaf = st.tuples(st.integers(0, rows - 1), st.integers(0, length - 1)) | st.just((-1, -1))
    return st.lists(leaf, min_size=slots, max_size=slots).map(lambda x: np.array(x, np.int32).reshape(-1, L, 2))


LEAVES = leaves("xla")
CASES = {"seed": st.integers(0, 2**32), "offset_norm": st.booleans()}


def draw_arrays(seed, which="xla"):
    rng = np.random.default_rng(seed)
    shape = SHAPES[which]
    return [rng.normal(size=s).astype(np.float32) for s in (shape, shape[2:], shape[2:], ())]


@functools.cache
def compiled(offset_norm, which="xla"):
    function = functools.partial(leaf_scores, eps=1e-5, offset_norm=offset_norm, **BACKENDS[which])
    if which == "xla":
        # Some tests differentiate it, and a jit inside another takes no compiler options.
        return jax.jit(function)
    function = jax.jit(function, compiler_options=QUICK)

    def raced(*arrays):
        with no_races():
            return jax.block_until_ready(function(*arrays))

    return raced


def check_against_the_definition(which, leaf, seed, offset_norm):
    hidden, scale, weight, bias = draw_arrays(seed, which)
    actual = compiled(offset_norm, which)(hidden, leaf, scale, weight, bias)
    expected = reference.leaf_scores(hidden, leaf, scale, weight, float(bias), eps=1e-5, offset_norm=offset_norm)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert not np.asarray(actual)[leaf[..., 0] < 0].any()


@settings(max_examples=examples(30))
@given(leaf=LEAVES, **CASES)
def test_scores_match_the_definition(leaf, seed, offset_norm):
    check_against_the_definition("xla", leaf, seed, offset_norm)


@settings(max_examples=examples(5))
@given(leaf=leaves("pallas_tpu"), seed=CASES["seed"])
def test_scores_of_the_tpu_kernel_match_the_definition(leaf, seed):
    # The other norm's scores are in the program of the gradients.
    check_against_the_definition("pallas_tpu", leaf, seed, offset_norm=True)


@pytest.mark.slow
@settings(max_examples=examples(15))
@given(leaf=leaves("pallas_tpu"), **CASES)
def test_scores_of_the_tpu_kernel_match_the_definition_with_either_norm(leaf, seed, offset_norm):
    check_against_the_definition("pallas_tpu", leaf, seed, offset_norm)


def check_only_leaves_are_read(which, leaf, dtype):
    arrays = draw_arrays(0, which)
    hidden, shared = arrays[0].astype(dtype), arrays[1:]
    read = np.zeros(hidden.shape[:2], bool)
    for row, index in leaf.reshape(-1, 2):
        if row >= 0:
            read[row, index] = True
    poisoned = np.where(read[..., None], hidden, np.array(np.nan, dtype))
    absent = leaf[..., 0] < 0
    function = compiled_gradient(which)
    scores, *gradients = function(poisoned, leaf, *shared, np.where(absent, np.float32(np.nan), np.float32(1)))
    expected = compiled(False)(hidden, leaf, *shared)
    np.testing.assert_allclose(scores, expected, rtol=0 if which == "xla" else 1e-5, atol=0 if which == "xla" else 1e-5)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)
    assert not np.asarray(gradients[0])[~read].any()
    assert float(gradients[3]) == (~absent).sum()


SCATTERED = st.lists(st.integers(-2, 99), min_size=1, max_size=60)


@functools.cache
def compiled_scatter(tokens, cores):
    sizes = {"tokens": tokens, "window": 16, "cores": cores, "vmem": 2**24, "interpret": INTERPRET}
    return jax.jit(functools.partial(scatter, (2, 50, 128), **sizes), compiler_options=QUICK)


@settings(max_examples=examples(6))
@given(leaf=SCATTERED, case=st.sampled_from([(16, 2, np.float32), (48, 1, jnp.bfloat16)]))
def test_rows_are_added_where_their_tokens_are(leaf, case):
    check_scatter(leaf, *case)


@pytest.mark.slow
@settings(max_examples=examples(30))
@given(
    leaf=SCATTERED,
    tokens=st.sampled_from([16, 48, 256]),
    cores=st.integers(1, 2),
    dtype=st.sampled_from([np.float32, jnp.bfloat16]),
)
def test_rows_are_added_where_their_tokens_are_by_blocks_of_every_size(leaf, tokens, cores, dtype):
    check_scatter(leaf, tokens, cores, dtype)


def check_scatter(leaf, tokens, cores, dtype):
    token = np.sort(np.pad(np.where(np.array(leaf) < 0, NOWHERE, leaf), (0, 64 - len(leaf)), constant_values=NOWHERE))
    # Whole numbers: their sums are exact in either dtype.
    d_row = np.random.default_rng(len(leaf)).integers(-2, 3, (64, 128)).astype(dtype)
    d_row[token == NOWHERE] = np.nan
    expected = np.zeros((100, 128), np.float32)
    np.add.at(expected, token[token < 100], d_row[token < 100].astype(np.float32))
    with no_races():
        actual = np.asarray(compiled_scatter(tokens, cores)(jnp.asarray(token, jnp.int32), jnp.asarray(d_row)))
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual.reshape(100, 128), expected)


@settings(max_examples=examples(20))
@given(leaf=st.lists(st.integers(0, 199), max_size=60), window=st.sampled_from([16, 32]), cores=st.integers(1, 3))
def test_every_block_of_tokens_is_visited_and_every_leaf_once(leaf, window, cores):
    token = jnp.asarray(np.sort(np.pad(leaf, (0, 64 - len(leaf)), constant_values=NOWHERE)).astype(np.int32))
    plan = [
        np.asarray(x).reshape(cores, -1)
        for x in jax.jit(steps, static_argnums=(1, 2, 3, 4))(token, 13, 16, window, cores)
    ]
    block, at, low, high = plan
    assert set(block.reshape(-1)) == set(range(13))
    assert all((np.diff(mine) >= 0).all() for mine in block)
    visited = [(b, i) for b, w, i0, i1 in zip(*(x.reshape(-1) for x in plan), strict=True) for i in range(i0, i1)]
    assert visited == [(t // 16, i) for i, t in enumerate(token.tolist()) if t < 13 * 16]
    # What a step adds lies in its window.
    assert ((low == high) | ((low >= at * window) & (high <= (at + 1) * window))).all()


@functools.cache
def compiled_gradient(which):
    """Scores, and gradients of all four arrays."""
    options = BACKENDS[which]

    # That of XLA has the same bits as its scores alone, which `compiled` gives.
    @functools.partial(jax.jit, compiler_options=None if which == "xla" else QUICK)
    def function(hidden, leaf, scale, weight, bias, d_score):
        def scores(hidden, *shared):
            return leaf_scores(hidden, leaf, *shared, eps=1e-5, **options)

        score, pull = jax.vjp(scores, hidden, scale, weight, bias)
        return score, *pull(d_score)

    def raced(*arrays):
        with no_races():
            return jax.block_until_ready(function(*arrays))

    return raced


@settings(max_examples=examples(30))
@given(leaf=LEAVES)
def test_only_leaves_are_read_and_get_gradients(leaf):
    check_only_leaves_are_read("xla", leaf, np.float32)


@settings(max_examples=examples(6))
@given(leaf=leaves("pallas_tpu"), dtype=st.sampled_from([np.float32, jnp.bfloat16]))
def test_only_leaves_are_read_by_the_tpu_kernel(leaf, dtype):
    # In bfloat16 a leaf's row is fetched together with its neighbour, which is NaN here.
    check_only_leaves_are_read("pallas_tpu", leaf, dtype)


@pytest.mark.parametrize(("dtype", "cores"), [pytest.param(np.float32, 1, marks=pytest.mark.slow), (jnp.bfloat16, 2)])
def test_the_tpu_kernel_agrees_with_xla_over_many_blocks(monkeypatch, dtype, cores):
    # Three blocks; of two cores the second has one with few leaves and one with none.
    monkeypatch.setattr(device, "cores", lambda: cores)
    trees = 66
    rng = np.random.default_rng(7)
    hidden, *shared = draw_arrays(8, "pallas_tpu")
    hidden = hidden.astype(dtype)
    leaf = np.stack([rng.integers(-1, n, (trees, L)) for n in hidden.shape[:2]], axis=-1).astype(np.int32)
    d_score = rng.normal(size=(trees, L)).astype(np.float32)
    # What tokens get from several leaves is added up in the dtype of the hidden states, in another order.
    tolerance = 1e-4 if dtype == np.float32 else 0.1
    both = [compiled_gradient(which)(hidden, leaf, *shared, d_score) for which in ("pallas_tpu", "xla")]
    for name, actual, expected in zip(("scores", "hidden", "scale", "weight", "bias"), *both, strict=True):
        assert actual.dtype == expected.dtype
        atol = tolerance if name == "hidden" else 1e-4
        actual, expected = (np.asarray(x, np.float32) for x in (actual, expected))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=atol, err_msg=name)


def test_gradients_match_finite_differences():
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in draw_arrays(1)]
        leaf = jnp.array([[[0, 1], [1, 6], [-1, -1], [0, 1]]] * G, jnp.int32)
        check_grads(lambda h, *rest: compiled(True)(h, leaf, *rest), arrays, order=1, modes=["rev"])


@BOTH
def test_a_leaf_outside_the_rows_is_nan(which):
    hidden, scale, weight, bias = draw_arrays(2, which)
    leaf = np.full((G, L, 2), -1, np.int32)
    leaf[0, 0], leaf[0, 1] = (len(hidden), 0), (0, hidden.shape[1])
    leaf[1, :2] = np.iinfo(np.int32).max
    d_score = np.ones((G, L), np.float32)
    scores, d_hidden, d_scale, *_ = compiled_gradient(which)(hidden, leaf, scale, weight, bias, d_score)
    assert np.isnan(np.asarray(scores)[:2]).tolist() == [[True, True, False, False]] * 2
    assert not np.asarray(d_hidden).any()
    assert np.isnan(np.asarray(d_scale)).all()


@BOTH
def test_leaves_of_one_token_add_up(which):
    hidden, scale, weight, bias = draw_arrays(4, which)
    d_score, several, once = np.ones((G, L), np.float32), *np.full((2, G, L, 2), -1, np.int32)
    several[0], once[0, 0] = 1, 1
    several, once = (
        np.asarray(compiled_gradient(which)(hidden, leaf, scale, weight, bias, d_score)[1]) for leaf in (several, once)
    )
    np.testing.assert_allclose(several, L * once, rtol=1e-5)
    assert np.count_nonzero(once.any(axis=-1)) == 1


@pytest.mark.parametrize("which", ["xla", pytest.param("pallas_tpu", marks=pytest.mark.slow)])
def test_vmap_is_one_call_after_another(which):
    hidden, scale, weight, bias = map(jnp.asarray, draw_arrays(9, which))
    leaf = np.stack([np.full((1, L, 2), i, np.int32) for i in range(2)])
    both_hidden, both_scale = np.stack([hidden, -2 * hidden]), np.stack([scale, 3 * scale])

    def gradients(options, hidden, leaf, scale):
        def total(hidden, scale):
            return leaf_scores(hidden, leaf, scale, weight, bias, eps=1e-5, **options).sum()

        return jax.value_and_grad(total, (0, 1))(hidden, scale)

    arrays = both_hidden, leaf, both_scale
    together = jax.jit(jax.vmap(functools.partial(gradients, BACKENDS[which])), compiler_options=QUICK)(*arrays)
    one = jax.jit(functools.partial(gradients, BACKENDS["xla"]), compiler_options=QUICK)
    alone = [one(*unbatched) for unbatched in zip(*arrays, strict=True)]
    jax.tree.map(lambda x, *y: np.testing.assert_allclose(x, np.stack(y), rtol=1e-4, atol=1e-4), together, *alone)


SPLIT = jax.jit(functools.partial(leaf_scores, eps=1e-5, partition=Partition(rows=("data",), columns=("tensor",))))


@settings(max_examples=20)
@given(leaf=LEAVES)
def test_rows_and_trees_split_over_a_mesh(leaf):
    hidden, scale, weight, bias = draw_arrays(5)
    # The second shard's trees lie in the second shard's rows; what is outside stays outside.
    past = np.where(
        leaf[..., :1] < 0, leaf[..., :1], np.where(leaf[..., :1] < len(hidden), leaf[..., :1] + len(hidden), 99)
    )
    other = np.concatenate([past, leaf[..., 1:]], axis=-1).astype(np.int32)
    leaf = np.where(leaf[..., :1] < len(hidden), leaf, np.array([99, 0], np.int32))
    both_hidden, both_leaf = np.concatenate([hidden, -2 * hidden]), np.concatenate([leaf, other])
    d_score = np.random.default_rng(6).normal(size=(2 * G, L)).astype(np.float32)

    def run(function):
        scores, pull = jax.vjp(lambda *x: function(x[0], both_leaf, *x[1:]), both_hidden, scale, weight, bias)
        return scores, *pull(d_score)

    mesh = jax.make_mesh((2, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        actual = run(SPLIT)
    for together, alone in zip(actual, run(compiled(False)), strict=True):
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_a_leaf_in_another_shard_scores_nan():
    hidden, scale, weight, bias = draw_arrays(5)
    rows = len(hidden)
    leaf = np.stack([np.full((L, 2), [rows, 0]), np.full((L, 2), [rows, 0])]).astype(np.int32)
    mesh = jax.make_mesh((2, 1), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        scores = np.asarray(SPLIT(np.concatenate([hidden, hidden]), leaf, scale, weight, bias))
    assert np.isnan(scores[0]).all()
    assert np.isfinite(scores[1]).all()


@BOTH
def test_low_precision_hidden_states_are_scored_in_float32(which):
    hidden, scale, weight, _ = draw_arrays(3, which)
    low = hidden.astype(jnp.bfloat16)
    leaf = np.stack(np.indices((G, L)) % 2, axis=-1).astype(np.int32)
    zeros = np.zeros((G, L), np.float32)
    actual, *_ = compiled_gradient(which)(low, leaf, scale, weight, np.float32(0), zeros)
    expected = reference.leaf_scores(low.astype(np.float32), leaf, scale, weight, None, eps=1e-5, offset_norm=False)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"block": 100}, r"^gap_reward: tiles.block is 100; it must be a positive multiple of 128, the lanes of a"),
        ({"group": 24}, r"^gap_reward: tiles.group is 24; it must be 16, 32, 64 or 128$"),
        ({"tokens": 8}, r"^gap_reward: tiles.tokens is 8; it must be a positive multiple of 16$"),
    ],
)
def test_sizes_of_blocks_are_checked(sizes, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**sizes)


@pytest.mark.slow
def test_other_sizes_of_blocks_change_nothing():
    hidden, *shared = map(jnp.asarray, draw_arrays(4, "pallas_tpu"))
    leaf = np.stack([np.arange(300) % 2, np.arange(300) % 16], axis=-1).astype(np.int32).reshape(75, 4, 2)

    def gradient(**options):
        def total(h):
            return leaf_scores(h, jnp.asarray(leaf), *shared, eps=1e-5, **options).sum()

        return jax.jit(jax.grad(total), compiler_options=QUICK)(hidden)

    actual = gradient(tiles=Tiles(block=256, group=32, tokens=16), implementation="pallas_tpu", interpret=True)
    np.testing.assert_allclose(actual, gradient(implementation="xla"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((2, 16, 100), jnp.float32, "hidden has width 100, and it takes multiples of 128"),
        ((2, 8, 128), jnp.bfloat16, "hidden has rows of 8 tokens, and in bfloat16 it takes multiples of 16"),
        ((2, 16, 128), jnp.float16, "hidden is float16, and it takes bfloat16 and float32"),
        ((1, 16, 2**17), jnp.float32, "hidden has width 131072, for which it takes about 385 MiB of VMEM, more than"),
    ],
)
def test_what_the_tpu_kernel_refuses_has_a_reason(shape, dtype, reason):
    leaf, vector = jnp.zeros((G, L, 2), jnp.int32), jnp.zeros(shape[2], dtype)
    arguments = jnp.zeros(shape, dtype), leaf, vector, vector
    with pytest.raises(
        UnsupportedImplementationError, match=f"gap_reward: pallas_tpu cannot serve this call: {reason}"
    ):
        leaf_scores(*arguments, eps=1e-5, implementation="pallas_tpu")
    assert leaf_scores(*arguments, eps=1e-5).shape == (G, L)


def test_no_leaves_are_no_kernel():
    hidden, scale, weight, _ = map(jnp.asarray, draw_arrays(0, "pallas_tpu"))
    arguments = hidden, jnp.zeros((0, L, 2), jnp.int32), scale, weight
    assert leaf_scores(*arguments, eps=1e-5).shape == (0, L)
    with pytest.raises(UnsupportedImplementationError, match=r"nothing to read in .* \(2, 16, 128\) at 0 leaves"):
        leaf_scores(*arguments, eps=1e-5, implementation="pallas_tpu")


SHAPES_COMPILED = {"gemma-2-2b": (8, 2048, 2304, 64, 4), "llama-3-8b": (4, 4096, 4096, 256, 16)}


PROGRAMS = [
    # The others are the same code at other sizes.
    pytest.param(*program, marks=() if program == ("v5e", "gemma-2-2b", jnp.bfloat16) else pytest.mark.slow)
    for program in itertools.product(device.KINDS, SHAPES_COMPILED, (jnp.bfloat16, jnp.float32))
]


@needs_libtpu
@pytest.mark.parametrize(("kind", "shape", "dtype"), PROGRAMS)
def test_compiles_and_is_what_auto_takes(kind, shape, dtype):
    batch, length, width, trees, slots = SHAPES_COMPILED[shape]

    def total(hidden, leaf, scale, weight, bias):
        return leaf_scores(hidden, leaf, scale, weight, bias, eps=1e-5).sum()

    leaf = jax.ShapeDtypeStruct((trees, slots, 2), jnp.int32)
    hidden = jax.ShapeDtypeStruct((batch, length, width), dtype)
    shared = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((width,), (width,), ()))
    gradient = jax.value_and_grad(total, (0, 2, 3, 4))
    text = compile_for(mesh(kind, data=1), gradient, hidden, leaf, *shared).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3


@needs_libtpu
def test_compiles_over_a_mesh_in_checkpoint_and_in_vmap():
    shapes = [((4, 64, 256), jnp.bfloat16), ((8, 4, 2), jnp.int32), ((256,), jnp.float32), ((256,), jnp.float32)]

    def gradient(hidden, leaf, *shared):
        def total(hidden):
            return leaf_scores(hidden, leaf, *shared, eps=1e-5, partition=Partition(rows=("data",))).sum()

        return jax.value_and_grad(jax.checkpoint(total))(hidden)

    split = [(jax.ShapeDtypeStruct(*shape), P("data") if len(shape[0]) > 1 else P()) for shape in shapes]
    text = compile_for(mesh("v5e", data=2), gradient, *split).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert "all-gather" not in text
    batch = [jax.ShapeDtypeStruct((3, *shape), dtype) for shape, dtype in shapes]
    text = compile_for(mesh("v5e", data=1), jax.vmap(gradient), *batch).as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3


SCORE = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=examples(30))
@given(r=SCORE)
def test_the_centred_gap_is_exactly_zero_at_identity(r):
    assert float(centred_gap(*[jnp.float32(r)] * 3)) == 0.0


@settings(max_examples=examples(30))
@given(a=SCORE, b=SCORE)
def test_the_symmetric_gap_changes_sign_when_the_order_does(a, b):
    a, b = jnp.float32(a), jnp.float32(b)
    assert float(symmetric_gap(a, b)) == -float(symmetric_gap(b, a))


@settings(max_examples=examples(30))
@given(scores=st.lists(st.integers(-1000, 1000), min_size=3, max_size=3), offset=st.integers(-1000, 1000))
def test_an_offset_leaves_both_gaps_alone(scores, offset):
    # Integers, so that float32 is exact and equality is what is meant.
    plain = [jnp.float32(x) for x in scores]
    moved = [jnp.float32(x + offset) for x in scores]
    assert float(centred_gap(*plain)) == float(centred_gap(*moved))
    assert float(symmetric_gap(*plain[:2])) == float(symmetric_gap(*moved[:2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": jnp.zeros((T, D))}, r"gap_reward: hidden has shape \(7, 5\); it must have rank 3, \[B T D\]"),
        ({"leaf": jnp.zeros((G, L, 3), jnp.int32)}, r"leaf has shape \(3, 4, 3\); it must be \[G L 2\] = \(3, 4, 2\)"),
        ({"leaf": jnp.zeros((G, L, 2), jnp.uint32)}, r"leaf has dtype uint32; it must be int32"),
        ({"norm_scale": jnp.zeros(4)}, r"norm_scale has shape \(4,\); it must be \[D\] = \(5,\)"),
        ({"head_weight": jnp.zeros((D, 1))}, r"head_weight has shape \(5, 1\); it must be \[D\] = \(5,\)"),
        ({"head_bias": jnp.zeros(1)}, r"head_bias has shape \(1,\); it must be \[\] = \(\)"),
        ({"eps": -1.0}, r"eps is -1\.0; it must be a Python float, finite and above 0"),
        ({"implementation": "sparse"}, r"gap_reward has no sparse backend; available: pallas_tpu, xla"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    # The undecorated function: under the suite's run-time shape checks the checker would answer first.
    hidden, scale, weight, bias = map(jnp.asarray, draw_arrays(0))
    arguments = {"hidden": hidden, "leaf": jnp.zeros((G, L, 2), jnp.int32), "norm_scale": scale, "head_weight": weight}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(leaf_scores)(**(arguments | {"head_bias": bias, "eps": 1e-5} | changes))
