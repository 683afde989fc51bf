"""The obvious twin of every packed computation: each root-to-leaf path of a tree alone in a row of its own.

A path is a tuple of tokens, closing role tokens included. What a model computes at a token depends on the tokens from
the root to it alone, so packed and separate results are both keyed by that tuple, wherever the packer put the token.
"""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from pit.config import ModelConfig, gemma_like
from pit.data.packing import Layout
from pit.data.template import gap, gap_scoring, improver_sft, policy_sft, quality, rollout
from pit.model.heads import RewardModel
from pit.model.params import build, merge, split

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Tiny arrays over and over: most of the time of an optimised program would be its compilation."""

VOCAB = 24
CLOSINGS, PAD = (1, 2, 3), 0
CONTENT = st.integers(4, VOCAB - 1)
LONGEST = 6
"""Most content tokens of a segment: a path of three is then at most 21 tokens."""

LLAMA = ModelConfig(width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, tied=False)
GEMMA = dataclasses.replace(
    gemma_like(LLAMA), attention_soft_cap=3.0, final_soft_cap=2.0, query_scale=0.4, head_dim=6, kv_heads=1
)

LEARNED = dataclasses.replace(LLAMA, learned_positions=64, rotary_fraction=0.5, matched_heads=1, tied=True)
"""A table of positions, heads that are half rotated, and matched keys: what small models trained from scratch use."""

WHOLE = Layout(closings=CLOSINGS, pad=PAD, row_length=60, rows=4, trees=3)
"""Rows that hold several trees, and even the largest one whole."""

SPLIT = Layout(closings=CLOSINGS, pad=PAD, row_length=24, rows=9, trees=3)
"""Rows of about one path, so that larger trees are split."""

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
"""Static shape of the separate rows: paths of all trees of a forest, and tokens of the longest."""


@functools.cache
def random_reward_model(config):
    """A reward model whose weights differ from their special initial values (norm scales of 0 or 1)."""
    graphdef, params = build(RewardModel, config, VOCAB, 0)
    rng = np.random.default_rng(0)
    moved = {name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in params.items()}
    return graphdef, moved


@functools.cache
def random_decoder(config):
    """The decoder of that reward model."""
    return split(merge(*random_reward_model(config)).decoder)


@st.composite
def forests(draw, topology, most_trees=4, longest=LONGEST):
    """Token lists `columns[c][i]` of 1 to `most_trees` trees."""
    trees = draw(st.integers(1, most_trees))
    columns = 1 + max(segment.column for segment in topology.segments)
    content = st.lists(CONTENT, max_size=longest)
    return [[draw(content) for _ in range(trees)] for _ in range(columns)]


def segment_path(topology, columns, tree, segment):
    """Tokens from the root to the end of a segment."""
    parent = topology.segments[segment].parent
    before = () if parent < 0 else segment_path(topology, columns, tree, parent)
    own = topology.segments[segment]
    return (*before, *columns[own.column][tree], CLOSINGS[own.kind])


def tip_paths(topology, columns, tree):
    """All root-to-leaf paths of one tree."""
    parents = {segment.parent for segment in topology.segments}
    tips = [i for i in range(len(topology.segments)) if i not in parents]
    return [segment_path(topology, columns, tree, tip) for tip in tips]


def leaf_paths(topology, columns, tree):
    """Path of each leaf slot of one tree."""
    by_slot = {s.leaf: segment_path(topology, columns, tree, i) for i, s in enumerate(topology.segments) if s.leaf >= 0}
    return [by_slot[slot] for slot in range(topology.leaves)]


def loss_paths(topology, columns):
    """How often each path ends in a token that is to carry loss (a root's first token has nothing before it)."""
    found = Counter()
    for tree in range(len(columns[0])):
        for i, segment in enumerate(topology.segments):
            path = segment_path(topology, columns, tree, i)
            own = len(columns[segment.column][tree]) + 1
            if segment.loss:
                found.update(path[:end] for end in range(len(path) - own + 1, len(path) + 1) if end > 1)
    return found


def rows_of(paths, rows=PATHS, length=PATH_LENGTH):
    """Arrays of a batch that holds each path in a row of its own, in order."""
    assert len(paths) <= rows
    token = np.zeros((rows, length), np.int32)
    until = np.zeros((rows, length), np.int32)
    for row, path in enumerate(paths):
        token[row, : len(path)] = path
        until[row, : len(path)] = len(path)
    position = np.broadcast_to(np.arange(length, dtype=np.int32), token.shape)
    return {"token": token, "position": position, "visible_until": until}


def packed_path(batch, row, index):
    """Tokens from the root to a place of a packed row, by its `previous` pointers."""
    path = [int(batch.token[row, index])]
    while batch.previous[row, index] != index:
        index = batch.previous[row, index]
        path.append(int(batch.token[row, index]))
    return tuple(reversed(path))


def live(batch):
    """(row, index) of every token that is not padding."""
    return np.argwhere(batch.visible_until > np.arange(batch.token.shape[1], dtype=np.int32)).tolist()


def arrays_of(batch, leaves=None):
    """The arrays of a batch that models see; the leaf table is widened to `leaves` absent slots where given."""
    names = ("token", "position", "visible_until", "previous", "loss_weight", "leaf")
    arrays = {name: jnp.asarray(getattr(batch, name)) for name in names}
    if leaves is not None:
        wider = ((0, 0), (0, leaves - batch.leaf.shape[1]), (0, 0))
        arrays["leaf"] = jnp.asarray(np.pad(batch.leaf, wider, constant_values=-1))
    return arrays


def path_logits(decoder, rows):
    """Logits at every place of separate rows."""
    return decoder.logits(decoder(rows["token"], rows["position"], rows["visible_until"]))


def path_logp(decoder, rows, temperature=1.0):
    """Log-prob of each token of separate rows given those before it; 0 at the first place."""
    logp = jax.nn.log_softmax(path_logits(decoder, rows) / jnp.float32(temperature), axis=-1)
    of_next = jnp.take_along_axis(logp[:, :-1], rows["token"][:, 1:, None], axis=2)[:, :, 0]
    return jnp.pad(of_next, ((0, 0), (1, 0)))


def path_scores(model, rows):
    """Score at the last token of each separate row."""
    decoder = model.decoder
    last = jnp.maximum(jnp.sum((rows["visible_until"] > 0).astype(jnp.int32), axis=1) - 1, 0)
    hidden = decoder(rows["token"], rows["position"], rows["visible_until"])
    at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return decoder.final_norm(at_last).astype(jnp.float32) @ model.score[...]
