"""Three-way attention against the dense float64 formula: trees of every shape, NaN in padding, any int32."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from error_rule import assert_within_rule, tree_rows, write_segments
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import INTERPRET, QUICK

from pit_kernels import UnsupportedImplementationError, device, three_way_attention
from pit_kernels.three_way_attention import reference, xla
from pit_kernels.three_way_attention.pallas_tpu import vmem
from pit_kernels.three_way_attention.tiles import Tiles

# One block, a last block that must be filled, whole blocks; heads of plain, grouped and single key/value attention.
SHAPES = ((2, 100, 2, 2, 8), (2, 300, 4, 2, 8), (1, 640, 2, 1, 8))
SOFT_CAP = 5.0
SOFT_CAPS = {SHAPES[0]: SOFT_CAP, SHAPES[1]: None, SHAPES[2]: None}
# A group of four heads: conformance has one and two. All tests of a TPU variant share its program of this shape.
TPU_SHAPE = (2, 300, 4, 1, 8)
BACKENDS = {
    "xla": {"implementation": "xla"},
    "tpu, a tile a row": {"interpret": INTERPRET, "tiles": Tiles(queries=128, keys=512, unroll=1, short=4)},
    "tpu, loops": {"interpret": INTERPRET, "tiles": Tiles(queries=128, keys=128, unroll=2, short=0)},
    "tpu, wide queries": {"interpret": INTERPRET, "tiles": Tiles(queries=256, keys=256, unroll=1, masked=1, short=1)},
    "tpu, stretches": {"interpret": INTERPRET, "tiles": Tiles(queries=128, keys=256, unroll=2, short=1, resident=256)},
}
TPU = tuple(name for name in BACKENDS if name != "xla")
# Conformance has blocks of many queries too.
WIDE = "tpu, wide queries"


def interpreted(*names):
    """Parametrize a fast test by TPU variants; the one of wide queries is slow."""
    return pytest.mark.parametrize(
        "backend", [pytest.param(name, marks=pytest.mark.slow if name == WIDE else ()) for name in names]
    )


def draw_arrays(shape, seed, dtype=np.float32):
    """q, k, v and the cotangents of output and log-sum-exp, rounded to `dtype`, as NumPy."""
    batch, tokens, heads, kv_heads, width = shape
    rng = np.random.default_rng(seed)
    shapes = [(heads, width), (kv_heads, width), (kv_heads, width), (heads, width), (heads,)]
    dtypes = [dtype] * 4 + [np.float32]
    return [rng.normal(size=(batch, tokens, *s)).astype(d) for s, d in zip(shapes, dtypes, strict=True)]


def results(function, arrays, visible_until):
    """Output, log-sum-exp, and gradients of q, k, v under the given cotangents."""
    q, k, v, d_out, d_lse = arrays
    (out, lse), pull = jax.vjp(lambda *qkv: function(*qkv, visible_until), q, k, v)
    return out, lse, *pull((d_out, d_lse.astype(lse.dtype)))


@functools.cache
def compiled(which, soft_cap):
    if which == "reference":
        function = functools.partial(reference.three_way_attention, logit_soft_cap=soft_cap)
    else:
        function = functools.partial(three_way_attention, logit_soft_cap=soft_cap, return_lse=True, **BACKENDS[which])
    return jax.jit(functools.partial(results, function), compiler_options=QUICK)


def shape_of(backend):
    return SHAPES[1] if backend == "xla" else TPU_SHAPE


def poisoned(arrays, padding):
    """Copies with NaN in padding."""
    copies = [x.copy() for x in arrays]
    for x in copies:
        x[padding] = np.nan
    return copies


def check_against_float64(arrays, visible_until, soft_cap=None, backend="xla", poison=False):
    """Check results and gradients by the rule; with `poison` the backend alone gets NaN in padding."""
    padding = visible_until <= np.arange(visible_until.shape[1])
    # The log-sum-exp of padding is -inf: it has no gradient.
    arrays = [*arrays[:4], np.where(padding[:, :, None], 0, arrays[4])]
    actual = compiled(backend, soft_cap)(poisoned(arrays, padding) if poison else arrays, visible_until)
    naive = compiled("reference", soft_cap)(arrays, visible_until)
    with jax.enable_x64(True):
        truth = compiled("reference", soft_cap)([x.astype(np.float64) for x in arrays], visible_until)
    for name, factor, *values in zip(
        ("out", "lse", "dq", "dk", "dv"), (2, 2, 3, 3, 3), actual, naive, truth, strict=True
    ):
        if name == "lse":
            values = [np.where(padding[:, :, None], 0, x) for x in values]
        assert_within_rule(*values, factor=factor, name=name)
    for x in (actual[0], *actual[2:]):
        assert not np.asarray(x, np.float32)[padding].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=examples(15))
@given(data=st.data())
def test_trees_match_the_dense_formula(shape, data):
    visible_until = data.draw(tree_rows(shape[0], shape[1]))
    check_against_float64(draw_arrays(shape, data.draw(st.integers(0, 2**32))), visible_until, SOFT_CAPS[shape])


def check_interpreted(backend, shape, data, *soft_caps):
    visible_until = data.draw(tree_rows(shape[0], shape[1]))
    arrays = draw_arrays(shape, data.draw(st.integers(0, 2**32)))
    check_against_float64(arrays, visible_until, data.draw(st.sampled_from(soft_caps)), backend, poison=True)


@interpreted(*TPU)
@settings(max_examples=3)
@given(data=st.data())
def test_interpreted_trees_match_the_dense_formula_whatever_is_in_padding(backend, data):
    check_interpreted(backend, TPU_SHAPE, data, None)


@pytest.mark.slow
@pytest.mark.parametrize("backend", TPU)
@pytest.mark.parametrize("shape", [SHAPES[1], (1, 640, 3, 1, 64), (1, 512, 4, 1, 64), (1, 512, 2, 2, 128)], ids=str)
@settings(max_examples=100)
@given(data=st.data())
def test_more_interpreted_trees_match_the_dense_formula(backend, shape, data):
    check_interpreted(backend, shape, data, None, SOFT_CAP)


EDGES = (-(2**31), -1, 0, 1, 127, 128, 129, 299, 300, 301, 384, 2**31 - 1)


def check_any_int32(data, backend):
    shape = shape_of(backend)
    values = data.draw(
        st.lists(
            st.sampled_from(EDGES) | st.integers(-(2**31), 2**31 - 1) | st.integers(0, 300), min_size=1, max_size=60
        )
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    visible_until = rng.choice(np.array(values, np.int32), size=shape[:2])
    check_against_float64(draw_arrays(shape, 0), visible_until, backend=backend)


@settings(max_examples=examples(30))
@given(data=st.data())
def test_any_int32_follows_the_formula(data):
    check_any_int32(data, "xla")


@pytest.mark.parametrize("backend", ["tpu, loops", pytest.param("tpu, stretches", marks=pytest.mark.slow)])
@settings(max_examples=3)
@given(data=st.data())
def test_interpreted_any_int32_follows_the_formula(backend, data):
    check_any_int32(data, backend)


NAMED_ROWS = {
    "one tree fills the row": [(0, 1000, False)],
    "all padding": [(0, 1000, True)],
    "deep: each token a child of the one before": [(depth, 1, False) for depth in range(300)],
    "wide: one root token and leaves of one token": [(0, 1, False)] + [(1, 1, False)] * 299,
    "every token its own tree": [(0, 1, False)] * 300,
    "segments end at a block's edge": [(0, 127, False), (1, 1, False), (2, 128, False), (1, 44, False)],
    "a tree starts after padding of more than a block": [
        (0, 129, True),
        (0, 60, False),
        (1, 60, False),
        (1, 51, False),
    ],
}


# Plain XLA has such rows in conformance; each row takes one fast TPU variant of three, and the others are slow.
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, backend, marks=() if fast == backend else pytest.mark.slow)
        for name, fast in zip(NAMED_ROWS, itertools.cycle(name for name in TPU if name != WIDE), strict=False)
        for backend in TPU
    ],
)
def test_named_rows(name, backend):
    row = write_segments(300, NAMED_ROWS[name])
    arrays = draw_arrays(shape_of(backend), 1)
    check_against_float64(arrays, np.stack([row, np.zeros_like(row)]), backend=backend)


def test_a_list_may_end_within_a_trip():
    # Five listed blocks, four a trip, in a row of six: what a trip reads past the list is no block.
    backend = functools.partial(
        three_way_attention, return_lse=True, interpret=INTERPRET, tiles=Tiles(queries=128, keys=512, unroll=1, short=0)
    )
    program = jax.jit(functools.partial(results, backend), compiler_options=QUICK)
    arrays = draw_arrays((1, 768, 1, 1, 8), 6)
    for until in (768, 767):
        visible_until = np.full((1, 768), until, np.int32)
        dead = np.arange(768)[None] >= until
        for x in arrays[3:]:
            x[dead] = 0
        expected = compiled("xla", None)(arrays, visible_until)
        for a, b in zip(program(arrays, visible_until), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("soft_cap", "backend"),
    [
        (SOFT_CAP, "xla"),
        (SOFT_CAP, "tpu, stretches"),
        # The dtype changes what a register packs, and no size of a tile does.
        pytest.param(None, "tpu, a tile a row", marks=pytest.mark.slow),
        pytest.param(SOFT_CAP, "tpu, loops", marks=pytest.mark.slow),
        pytest.param(None, "tpu, wide queries", marks=pytest.mark.slow),
    ],
)
def test_bfloat16(soft_cap, backend):
    rows = [NAMED_ROWS["one tree fills the row"], NAMED_ROWS["segments end at a block's edge"]]
    arrays = draw_arrays(shape_of(backend), 2, jnp.bfloat16)
    check_against_float64(arrays, np.stack([write_segments(300, row) for row in rows]), soft_cap, backend)
    out, *_ = jax.eval_shape(compiled(backend, soft_cap), arrays, np.zeros((2, 300), np.int32))
    assert out.dtype == jnp.bfloat16


@settings(max_examples=examples(30))
@given(data=st.data())
def test_nan_in_padding_reaches_nothing(data):
    check_nan_in_padding(data, "xla")


@pytest.mark.slow
@pytest.mark.parametrize("backend", TPU)
@settings(max_examples=4)
@given(data=st.data())
def test_interpreted_nan_in_padding_reaches_nothing(backend, data):
    check_nan_in_padding(data, backend)


def check_nan_in_padding(data, backend):
    shape, program = shape_of(backend), compiled(backend, None)
    visible_until = data.draw(tree_rows(shape[0], shape[1]))
    padding = visible_until <= np.arange(shape[1])
    clean = draw_arrays(shape, data.draw(st.integers(0, 2**32)))
    out, lse, *gradients = program(poisoned(clean, padding), visible_until)
    for a, b in zip(program(clean, visible_until), (out, lse, *gradients), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (np.asarray(lse)[padding] == -np.inf).all()
    assert np.isfinite(np.asarray(lse)[~padding]).all()
    for x in (out, *gradients):
        assert not np.asarray(x)[padding].any()


@settings(max_examples=examples(30))
@given(data=st.data())
def test_a_tree_equals_its_separate_paths(data):
    shape = SHAPES[1]
    visible_until = data.draw(tree_rows(1, shape[1]))
    arrays = draw_arrays(shape, data.draw(st.integers(0, 2**32)))
    q, k, v, *_ = (x[:1] for x in arrays)
    # The other row is padding.
    rows = np.concatenate([visible_until, np.zeros_like(visible_until)])
    out = np.asarray(compiled("xla", None)(arrays, rows)[0])[0]
    alive = np.flatnonzero(visible_until[0] > np.arange(shape[1]))
    if alive.size == 0:
        return
    leaf = data.draw(st.sampled_from(list(alive)))
    path = [s for s in range(leaf + 1) if s <= leaf < visible_until[0, s]]
    for n in range(q.shape[2]):
        keys, values = k[0, path, n // 2], v[0, path, n // 2]
        p = np.exp(keys.astype(np.float64) @ q[0, leaf, n] * shape[-1] ** -0.5)
        np.testing.assert_allclose(out[leaf, n], p @ values / p.sum(), rtol=2e-5, atol=2e-5)


def test_the_default_scale_is_the_inverse_root_of_the_width():
    q, k, v, *_ = map(jnp.asarray, draw_arrays(SHAPES[0], 3))
    visible_until = jnp.full((2, 100), 100, jnp.int32)
    default = three_way_attention(q, k, v, visible_until)
    np.testing.assert_array_equal(default, three_way_attention(q, k, v, visible_until, scale=8**-0.5))
    assert not np.allclose(default, three_way_attention(q, k, v, visible_until, scale=1.0))


def test_large_logits_do_not_overflow():
    x = jnp.full((1, 300, 1, 8), 1e4, jnp.float32)
    out, lse = three_way_attention(x, x, x, jnp.full((1, 300), 300, jnp.int32), return_lse=True)
    np.testing.assert_allclose(out, 1e4, rtol=1e-6)
    assert np.isfinite(np.asarray(lse)).all()


@functools.partial(jax.jit, compiler_options=QUICK)
def visited_blocks(visible_until):
    heads = jnp.zeros((2, 640, 1, 1))
    tiles = xla._tile(heads, heads, heads, visible_until, None)
    return [xla._visible_blocks(tiles, jnp.int32(i), None) for i in range(5)]


@settings(max_examples=examples(30))
@given(visible_until=tree_rows(2, 640))
def test_visited_blocks_hold_every_seen_pair_and_no_block_that_nothing_reaches(visible_until):
    index = np.arange(640)
    seen = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < visible_until[:, None, :])
    needed = seen.any(0).reshape(5, 128, 5, 128).any((1, 3)) | np.eye(5, dtype=bool)
    for i, (order, count) in enumerate(visited_blocks(visible_until)):
        assert list(order[: int(count)]) == list(np.flatnonzero(needed[i]))


@functools.cache
def gradient_bytes(tokens):
    x = jax.ShapeDtypeStruct((1, tokens, 1, 16), jnp.float32)
    gradient = jax.grad(lambda q, k, v, u: three_way_attention(q, k, v, u).sum(), (0, 1, 2))
    compiled_gradient = (
        jax.jit(gradient, compiler_options=QUICK).lower(x, x, x, jax.ShapeDtypeStruct((1, tokens), jnp.int32)).compile()
    )
    return compiled_gradient.memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_row():
    assert gradient_bytes(8192) < 2.2 * gradient_bytes(4096)
    assert gradient_bytes(8192) < 8192 * 8192, "a quarter of one T x T matrix of float32"


def test_two_devices_and_rematerialisation_change_nothing():
    assert jax.device_count() >= 2, "the tests run with two CPU devices: XLA_FLAGS in tests/conftest.py"
    row = write_segments(300, NAMED_ROWS["segments end at a block's edge"])
    visible_until = jnp.asarray(np.stack([row, np.full(300, 300, np.int32)]))
    q, k, v, d_out, _ = map(jnp.asarray, draw_arrays(SHAPES[1], 4))

    def loss(q, k, v, visible_until, d_out):
        # Only plain XLA splits rows that no Partition names.
        return jnp.sum(three_way_attention(q, k, v, visible_until, implementation="xla") * d_out)

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)), compiler_options=QUICK)
    expected = jax.tree.leaves(gradient(q, k, v, visible_until, d_out))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = gradient(*(jax.device_put(x, sharding) for x in (q, k, v, visible_until, d_out)))
    remat = jax.jit(jax.value_and_grad(jax.checkpoint(loss), (0, 1, 2)), compiler_options=QUICK)(
        q, k, v, visible_until, d_out
    )
    assert sharded[1][0].sharding.spec[0] == "data"
    for a, b, c in zip(expected, jax.tree.leaves(sharded), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-5)


def test_vmap_over_layers():
    arrays = draw_arrays(SHAPES[1], 5)
    visible_until = np.random.default_rng(0).integers(0, 300, (2, 300)).astype(np.int32)
    over_layers = jax.jit(jax.vmap(three_way_attention), compiler_options=QUICK)
    batched = over_layers(*(x[:, None] for x in (*arrays[:3], visible_until)))
    np.testing.assert_allclose(batched[:, 0], compiled("xla", None)(arrays, visible_until)[0], rtol=1e-5, atol=1e-6)


def call(
    q=(1, 4, 2, 8), k=(1, 4, 1, 8), v=(1, 4, 1, 8), until=(1, 4), dtype=jnp.float32, until_dtype=jnp.int32, **rest
):
    # The undecorated function: under the suite's run-time shape checks the checker would answer first.
    raw = inspect.unwrap(three_way_attention)
    q, k, v = (jnp.zeros(s, dtype) for s in (q, k, v))
    return raw(q, k.astype(rest.pop("k_dtype", dtype)), v, jnp.zeros(until, until_dtype), **rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": (4, 2, 8)}, r"three_way_attention: q has shape \(4, 2, 8\); it must have rank 4, \[B T N H\]"),
        ({"k": (1, 5, 1, 8)}, r"k has shape \(1, 5, 1, 8\); it must be \[B T K H\] = \(1, 4, 1, 8\)"),
        ({"axes": "NTBH"}, 'axes is \'NTBH\'; it must be "BTNH" or "BNTH"'),
        ({"axes": "BNTH", "k": (1, 1, 5, 8)}, r"k has shape \(1, 1, 5, 8\); it must be \[B K T H\] = \(1, 1, 2, 8\)"),
        ({"v": (1, 4, 2, 8)}, r"v has shape \(1, 4, 2, 8\); it must be \[B T K H\] = \(1, 4, 1, 8\)"),
        ({"until": (1, 3)}, r"visible_until has shape \(1, 3\); it must be \[B T\] = \(1, 4\)"),
        ({"until_dtype": jnp.uint32}, r"visible_until has dtype uint32; it must be int32: convert it"),
        ({"dtype": jnp.int32}, r"dtypes are q int32, k int32, v int32; they must be one floating dtype"),
        ({"k_dtype": jnp.bfloat16}, r"dtypes are q float32, k bfloat16, v float32; they must be one floating dtype"),
        (
            {"q": (1, 4, 3, 8), "k": (1, 4, 2, 8), "v": (1, 4, 2, 8)},
            r"q has N=3 heads and k has K=2; N must be a multiple",
        ),
        ({"scale": 0.0}, r"scale is 0\.0; it must be a Python float, finite and above 0"),
        ({"logit_soft_cap": float("nan")}, r"logit_soft_cap is nan; it must be a Python float, finite and above 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_int64_is_refused():
    with jax.enable_x64(True), pytest.raises(ValueError, match="visible_until has dtype int64; it must be int32"):
        call(until_dtype=jnp.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"implementation": "sparse"},
            'has no sparse backend; available: pallas_tpu, triton_gpu, cpu, xla. Ask for implementation="auto"',
        ),
        (
            {"implementation": "pallas_tpu", "dtype": jnp.float16},
            "pallas_tpu cannot serve this call: its inputs are float16, and it computes in bfloat16 and float32",
        ),
        (
            {"implementation": "pallas_tpu", **dict.fromkeys("qkv", (1, 100, 1, 2**16)), "until": (1, 100)},
            "rows of 100 tokens: 128 keys and their lists take more than a v5e lends, 120 MiB of VMEM and 1 MiB",
        ),
        ({"implementation": "xla", "interpret": True}, "interpret is for TPU kernels, and implementation is 'xla'"),
    ],
)
def test_a_backend_that_cannot_serve_says_why(arguments, message):
    with pytest.raises(UnsupportedImplementationError, match=message):
        call(**arguments)


@given(
    tokens=st.integers(1, 2**18),
    width=st.sampled_from((8, 64, 128, 256)),
    itemsize=st.sampled_from((2, 4)),
    resident=st.sampled_from((None, 128, 512, 4096)),
)
def test_stretches_cover_a_row_and_are_the_fewest_that_fit(tokens, width, itemsize, resident):
    rows = vmem.Rows(2, max(width, 64), itemsize, Tiles(queries=256, resident=resident))
    number, keys = vmem.stretches(tokens, rows)
    assert keys % 256 == 0
    assert (number - 1) * keys < tokens <= number * keys
    assert vmem.backward_bytes(rows, keys, buffers=1, stretch=number > 1) <= device.vmem_bytes()
    whole = vmem.padded_tokens(tokens, 256)
    if vmem.backward_bytes(rows, whole, buffers=1, stretch=False) <= device.vmem_bytes() and tokens <= 2**14:
        assert (number == 1) == (resident is None or tokens <= max(resident, 256))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"queries": 100}, r"tiles\.queries is 100; it must be a positive multiple of 128"),
        ({"queries": 384}, r"tiles\.queries is 384; it must be a power of two"),
        ({"keys": 0}, r"tiles\.keys is 0; it must be a positive multiple of 128"),
        ({"unroll": 0}, r"tiles\.unroll is 0; it must be a positive multiple of 1"),
        ({"short": -1}, r"tiles\.short is -1; it must not be negative"),
        ({"resident": 100}, r"tiles\.resident is 100; it must be a positive multiple of 128"),
    ],
)
def test_bad_tiles_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**sizes)
