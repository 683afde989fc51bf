"""Small models and random forests for the tests, and their slow twins, which put each path alone into a row.

The twins come from `pit.testing.paths`; here they get the closing tokens and the static shapes of the tests.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import strategies as st

from pit.config import ModelConfig, RopeScaling, gemma_like
from pit.data.packing import Layout
from pit.data.template import gap, gap_scoring, improver_sft, policy_sft, quality, rollout
from pit.model.heads import RewardModel
from pit.model.params import merge, split
from pit.testing import paths
from pit.types import Closings

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Most of the time of an optimised program on arrays this small would be its compilation."""

VOCAB = 24
ROLES, PAD = (1, 2, 3), 0
CLOSINGS = Closings.roles(*ROLES)
CONTENT = st.integers(4, VOCAB - 1)
LONGEST = 6
"""Most content tokens of a segment: a path of three segments then has at most 21 tokens."""

LLAMA = ModelConfig(width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, tied=False)
GEMMA = dataclasses.replace(
    gemma_like(LLAMA), attention_soft_cap=3.0, final_soft_cap=2.0, query_scale=0.4, head_dim=6, kv_heads=1
)

LEARNED = dataclasses.replace(LLAMA, learned_positions=64, rotary_fraction=0.5, matched_heads=1, tied=True)
"""A table of positions, half-rotated heads and matched keys, as in small models trained from scratch."""

WINDOWED = dataclasses.replace(
    GEMMA,
    qk_norm=True,
    qkv_bias=True,
    rope_scaling=RopeScaling(factor=2.0),
    window=4,
    global_every=2,
    local_rope_theta=50.0,
)
"""A window far shorter than a path, in every second layer, and all that Qwen and Gemma 3 add."""

WHOLE = Layout(closings=CLOSINGS, pad=PAD, row_length=60, rows=4, trees=3)
"""Rows that hold several trees; even the largest tree fits into one."""

SPLIT = Layout(closings=CLOSINGS, pad=PAD, row_length=24, rows=9, trees=3)
"""Rows of about one path: larger trees are split."""

TOPOLOGIES = (
    policy_sft(),
    improver_sft(),
    quality(),
    gap(),
    rollout(3, with_reference=True),
    rollout(2, with_reference=False),
    gap_scoring(2, identity=True, swapped=True)[0],
)
MOST_LEAVES = max(topology.leaves for topology in TOPOLOGIES)
PATHS, PATH_LENGTH = 32, 24
"""Static shape of the separate rows: most paths of a forest, and most tokens of a path."""


@functools.cache
def graph(kind, config):
    """Return the graph definition of a Decoder or a RewardModel; no weight is computed."""
    return nnx.split(nnx.eval_shape(lambda: kind(config, VOCAB, nnx.Rngs(0))), nnx.Param)[0]


@functools.cache
def initial(kind, config, seed=0):
    """Return the initial weights of `pit.model.params.build`, up to rounding, at a third of the time to compile it."""
    return jit(lambda key: split(kind(config, VOCAB, nnx.Rngs(params=key)))[1])(jax.random.key(seed))


@functools.cache
def random_reward_model(config):
    """Return a reward model whose weights differ from their special initial values (norm scales of 0 or 1)."""
    graphdef, params = graph(RewardModel, config), initial(RewardModel, config)
    rng = np.random.default_rng(0)
    moved = {name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in params.items()}
    return graphdef, moved


@functools.cache
def random_decoder(config):
    """Return the decoder of that reward model."""
    return split(merge(*random_reward_model(config)).decoder)


@st.composite
def forests(draw, topology, most_trees=4, longest=LONGEST):
    """Draw token lists `columns[c][i]` of 1 to `most_trees` trees."""
    trees = draw(st.integers(1, most_trees))
    columns = 1 + max(segment.column for segment in topology.segments)
    content = st.lists(CONTENT, max_size=longest)
    return [[draw(content) for _ in range(trees)] for _ in range(columns)]


segment_path = functools.partial(paths.segment_path, closings=CLOSINGS)
tip_paths = functools.partial(paths.tip_paths, closings=CLOSINGS)
leaf_paths = functools.partial(paths.leaf_paths, closings=CLOSINGS)
loss_paths = functools.partial(paths.loss_paths, closings=CLOSINGS)
packed_path, live = paths.packed_path, paths.live


def rows_of(paths_of_rows, rows=PATHS, length=PATH_LENGTH):
    """Return the arrays of a batch that holds each path in a row of its own, in order."""
    batch = paths.separate_rows(paths_of_rows, rows, length)
    return {name: getattr(batch, name) for name in ("token", "position", "visible_until")}


def arrays_of(batch, leaves=None):
    """Return the arrays of a batch that models see; absent slots widen the leaf table to `leaves`."""
    names = ("token", "position", "visible_until", "previous", "loss_weight", "leaf")
    arrays = {name: jnp.asarray(getattr(batch, name)) for name in names}
    if leaves is not None:
        wider = ((0, 0), (0, leaves - batch.leaf.shape[1]), (0, 0))
        arrays["leaf"] = jnp.asarray(np.pad(batch.leaf, wider, constant_values=-1))
    return arrays


def path_logits(decoder, rows):
    """Return the logits at every place of separate rows."""
    return decoder.logits(decoder(rows["token"], rows["position"], rows["visible_until"]))


def path_logp(decoder, rows, temperature=1.0):
    """Return the log-prob of each token of separate rows given the tokens before it; 0 at the first place."""
    logp = jax.nn.log_softmax(path_logits(decoder, rows) / jnp.float32(temperature), axis=-1)
    of_next = jnp.take_along_axis(logp[:, :-1], rows["token"][:, 1:, None], axis=2)[:, :, 0]
    return jnp.pad(of_next, ((0, 0), (1, 0)))


def path_scores(model, rows):
    """Return the score at the last token of each separate row."""
    decoder = model.decoder
    last = jnp.maximum(jnp.sum((rows["visible_until"] > 0).astype(jnp.int32), axis=1) - 1, 0)
    hidden = decoder(rows["token"], rows["position"], rows["visible_until"])
    at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return decoder.final_norm(at_last).astype(jnp.float32) @ model.score[...]
