"""Wrong variants of the packer, the models, the losses and the sampler, and degenerate scorers, one line each.

Each is a patch of the real code (or a scorer that people have trained without meaning to), with the invariant that is
meant to catch it. docs/testing.md shows this table.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import cases
import jax.numpy as jnp
import numpy as np
import path_twins as twins
from degenerate import DEGENERATE
from test_scorers import FakeClassifier, FakeTokenizer

from pit.data import packing
from pit.losses import gap as gap_losses
from pit.losses.total import Total
from pit.model import decoder, heads
from pit.rollout import sample as sampling
from pit.rollout import score as scoring
from pit.stages import reward
from pit.testing import policy
from pit.testing.adapters import Difference, SequenceClassifier
from pit.testing.checkpoint import RowModel
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW


class Mutant(NamedTuple):
    """What is wrong with what, how to make it so, the scorer to ask, and the invariant that is to catch it."""

    what: str
    part: str
    caught_by: str
    patch: Callable[[], Any]
    make: Callable[[], Any]
    slow: bool = False


def packed(change):
    """The packer, with its batches changed after the fact by a function of (batch, arrays)."""
    real = packing.materialise

    def materialise(*arguments, **options):
        batch = real(*arguments, **options)
        return dataclasses.replace(batch, **change(batch))

    return lambda: mock.patch.object(packing, "materialise", materialise)


def alive(batch):
    return batch.visible_until > np.arange(batch.token.shape[1], dtype=np.int32)


def tree_ends(batch):
    """Every token sees until its whole tree ends."""
    until = batch.visible_until.copy()
    for row, first in np.argwhere((batch.position == 0) & alive(batch)):
        until[row, first : until[row, first]] = until[row, first]
    return until


def attention(sees, *, guard=True):
    """Dense attention with another rule of what query q sees of key k; padding gives 0 unless it is not guarded."""

    def run(q, k, v, visible_until, *, scale=None, **_):
        index = jnp.arange(q.shape[1], dtype=jnp.int32)
        until = visible_until[:, None, :]
        living = visible_until > index[None, :]
        seen = sees(index[None, :, None], index[None, None, :], until) & living[:, :, None] & living[:, None, :]
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) * jnp.float32(q.shape[-1] ** -0.5 if scale is None else scale)
        safe = seen | ~living[:, :, None] if guard else seen
        weights = jnp.exp(jnp.where(safe[:, None], logits, -jnp.inf))
        out = jnp.einsum("bnts,bsnh->btnh", weights / jnp.sum(weights, axis=-1, keepdims=True), v)
        return jnp.where(living[:, :, None, None], out, jnp.float32(0)) if guard else out

    return lambda: mock.patch.object(decoder, "three_way_attention", run)


def embedded(change):
    """Embeddings changed by a function of [B, T, D]."""
    real = decoder.Decoder.embed
    return lambda: mock.patch.object(decoder.Decoder, "embed", lambda self, *rows: change(real(self, *rows)))


def scored(change):
    """The reward model's call, changed by a function of (its own call, token, position, visible_until, leaf)."""
    real = heads.RewardModel.__call__
    return lambda: mock.patch.object(
        heads.RewardModel, "__call__", lambda self, *rows: change(lambda *r: real(self, *r), *rows)
    )


def ordered_pairs(*pairs):
    return lambda: mock.patch.object(gap_losses, "ORDERED_PAIRS", pairs)


def loss(change):
    """The five-pair loss, changed by a function of (its own, scores, present)."""
    real = gap_losses.five_pairs
    return lambda: mock.patch.object(reward, "five_pairs", lambda score, present: change(real, score, present))


def averaged(real, score, present):
    total = real(score, present)
    return Total(total.sum / total.weight, jnp.float32(1))


def noisy():
    real, dice = RowModel.score_rows, np.random.default_rng(0)
    noise = lambda scores: scores + dice.normal(0, 0.01, scores.shape).astype(np.float32)  # noqa: E731
    return mock.patch.object(RowModel, "score_rows", lambda self, batch: noise(real(self, batch)))


def swapped_roles():
    real = scoring.Scorer.gap
    return mock.patch.object(
        scoring.Scorer, "gap", lambda self, xs, refs, ys, form, packed=None: real(self, xs, ys[0], [refs], form)
    )


def raw_for_centred():
    real = scoring.Scorer.gap
    return mock.patch.object(
        scoring.Scorer, "gap", lambda self, xs, refs, ys, form, packed=None: real(self, xs, refs, ys, "raw")
    )


def cold_trainer():
    real = heads.token_logprob
    return mock.patch.object(heads, "token_logprob", lambda *a, temperature, **more: real(*a, temperature=1.0, **more))


def lengths_by_padding():
    """As if EOS were PAD: what is not EOS is counted."""
    real = sampling.sample

    def sample(*arguments, **options):
        drawn = real(*arguments, **options)
        eos = options["eos_ids"][0]
        length = np.sum((drawn.token != eos) & (drawn.token != 0), axis=-1).astype(np.int32)
        return drawn._replace(length=length)

    return mock.patch.object(policy, "sample", sample)


def prefix_too_long():
    real = decoder.Decoder.decode

    def longer(self, token, prefixes, suffixes, step):
        return real(self, token, prefixes, suffixes, step._replace(prefix_length=step.prefix_length + 1))

    return mock.patch.object(decoder.Decoder, "decode", longer)


def other_policy():
    """A policy with a static configuration of its own, so that no program of the right one is used for it."""
    config = dataclasses.replace(twins.LLAMA, norm_eps=2e-5)
    with mock.patch.object(twins, "LLAMA", config):
        return cases.policy_model()


def in_batch(change):
    """The length of an answer as its score, changed by a function of all scores of a call."""
    return lambda: cases.GapFunction(
        lambda xs, ys, refs: change(np.array([len(y) - len(ref) for y, ref in zip(ys, refs, strict=True)], np.float32))
    )


def left_padded():
    return Difference(SequenceClassifier(FakeClassifier("counted"), FakeTokenizer("left")))


def dropout():
    dice = np.random.default_rng(0)
    return cases.difference(lambda x, y: len(y) * (dice.random() > 0.1))


def own(function):
    return lambda: function


nothing = contextlib.nullcontext
FIVE = gap_losses.ORDERED_PAIRS
SWAPPED = {GAP_WL: GAP_LW, GAP_LW: GAP_WL}

MUTANTS = (
    # The packer.
    Mutant(
        "visible_until one too small",
        "packer",
        "tree_is_paths",
        packed(lambda b: {"visible_until": b.visible_until - alive(b)}),
        cases.row_model,
    ),
    Mutant(
        "visible_until one too large",
        "packer",
        "tree_is_paths",
        packed(lambda b: {"visible_until": np.minimum(b.visible_until + alive(b), b.token.shape[1])}),
        cases.row_model,
        True,
    ),
    Mutant(
        "sibling sees sibling",
        "packer",
        "tree_is_paths",
        packed(lambda b: {"visible_until": tree_ends(b)}),
        cases.row_model,
        True,
    ),
    Mutant(
        "position is the place in the row",
        "packer",
        "tree_is_paths",
        packed(lambda b: {"position": np.broadcast_to(np.arange(b.token.shape[1], dtype=np.int32), b.token.shape)}),
        cases.row_model,
        True,
    ),
    Mutant(
        "two tokens share a position",
        "packer",
        "tree_is_paths",
        packed(lambda b: {"position": b.position // 2}),
        cases.row_model,
        True,
    ),
    Mutant(
        "leaf table one token early",
        "packer",
        "tree_is_paths",
        packed(lambda b: {"leaf": b.leaf - np.array([0, 1], np.int32) * (b.leaf >= 0)}),
        cases.row_model,
        True,
    ),
    Mutant(
        "trees of a batch mixed up",
        "packer",
        "tree_is_paths",
        packed(lambda b: {"leaf": np.where(b.leaf >= 0, np.roll(b.leaf, 1, axis=1), b.leaf)}),
        cases.row_model,
        True,
    ),
    # The model.
    Mutant(
        "attention is not causal", "model", "after_the_end", attention(lambda q, k, until: q < until), cases.row_model
    ),
    Mutant(
        "attention ignores visible_until",
        "model",
        "row_neighbours",
        attention(lambda q, k, until: k <= q),
        cases.row_model,
        True,
    ),
    Mutant(
        "attention reaches back five places",
        "model",
        "tree_is_paths",
        attention(lambda q, k, until: (k <= q) & (q < until) & (k > q - 5)),
        cases.row_model,
        True,
    ),
    Mutant(
        "softmax of padding is 0 / 0",
        "model",
        "gradient_of_paths",
        attention(lambda q, k, until: (k <= q) & (q < until), guard=False),
        cases.row_model,
        True,
    ),
    Mutant(
        "embeddings less the mean of their row",
        "model",
        "padding_content",
        embedded(lambda x: x - jnp.mean(x, axis=1, keepdims=True)),
        cases.row_model,
    ),
    Mutant(
        "embeddings less the mean of the batch",
        "model",
        "row_neighbours",
        embedded(lambda x: x - jnp.mean(x, axis=0, keepdims=True)),
        cases.row_model,
        True,
    ),
    Mutant(
        "score over the length of the row",
        "model",
        "padding_length",
        scored(lambda real, token, *r: real(token, *r) / jnp.float32(token.shape[1])),
        cases.row_model,
        True,
    ),
    Mutant(
        "score depends on the row's number",
        "model",
        "row_order",
        scored(lambda real, *r: real(*r) + jnp.float32(0.01) * r[-1][..., 0].astype(jnp.float32)),
        cases.row_model,
        True,
    ),
    Mutant(
        "score read one token late",
        "model",
        "after_the_end",
        scored(lambda real, *r: real(*r[:-1], jnp.where(r[-1] >= 0, r[-1] + jnp.array([0, 1], jnp.int32), -1))),
        cases.row_model,
        True,
    ),
    Mutant(
        "score over the number of trees",
        "model",
        "microbatches",
        scored(lambda real, *r: real(*r) / jnp.sum(r[-1][:, 0, 0] >= 0).astype(jnp.float32)),
        cases.row_model,
        True,
    ),
    Mutant(
        "score adds that of a sibling",
        "model",
        "unseen_places",
        scored(lambda real, *r: real(*r) + real(*r[:-1], jnp.roll(r[-1], -1, axis=1))),
        cases.row_model,
        True,
    ),
    Mutant("dropout left on", "model", "rows_deterministic", noisy, cases.row_model),
    # The losses.
    Mutant("a pair is missing", "loss", "loss_definition", ordered_pairs(*FIVE[1:]), cases.row_model),
    Mutant(
        "a pair is reversed", "loss", "loss_definition", ordered_pairs(FIVE[0][::-1], *FIVE[1:]), cases.row_model, True
    ),
    Mutant(
        "the identities are ordered too",
        "loss",
        "loss_definition",
        ordered_pairs(*FIVE, (GAP_WW, GAP_LL)),
        cases.row_model,
        True,
    ),
    Mutant(
        "candidate and reference swapped",
        "loss",
        "loss_definition",
        ordered_pairs(*[(SWAPPED.get(high, high), SWAPPED.get(low, low)) for high, low in FIVE]),
        cases.row_model,
        True,
    ),
    Mutant(
        "better and worse swapped in R_P",
        "loss",
        "loss_definition",
        lambda: mock.patch.object(reward, "pairwise", lambda s, p, real=gap_losses.pairwise: real(s[:, ::-1], p)),
        lambda: cases.row_model("quality"),
        True,
    ),
    Mutant("mean over the microbatch", "loss", "loss_of_parts", loss(averaged), cases.row_model),
    Mutant(
        "empty slots count",
        "loss",
        "loss_of_parts",
        loss(lambda real, s, p: real(s, jnp.ones_like(p))),
        cases.row_model,
        True,
    ),
    # Text and batches.
    Mutant("candidate and reference swapped", "scorer", "level_agreement", swapped_roles, cases.text_model, True),
    Mutant("raw gap given as centred", "scorer", "centred_identity", raw_for_centred, cases.text_model, True),
    Mutant("left padding under a sequence classifier", "scorer", "padding", nothing, left_padded),
    Mutant(
        "scores normalised by the batch", "scorer", "batch_size", nothing, in_batch(lambda s: s / np.float32(len(s)))
    ),
    Mutant(
        "score depends on the place in the batch",
        "scorer",
        "item_order",
        nothing,
        in_batch(lambda s: s + np.arange(len(s), dtype=np.float32)),
    ),
    Mutant("int rewards", "scorer", "well_formed", nothing, in_batch(lambda s: s.astype(np.int32))),
    Mutant("dropout left on", "scorer", "deterministic", nothing, dropout),
    # The sampler.
    Mutant(
        "temperature ignored in one of two log-probs",
        "sampler",
        "sampler_is_trainer",
        cold_trainer,
        cases.policy_model,
        True,
    ),
    Mutant("EOS taken for PAD", "sampler", "draws_end", lengths_by_padding, cases.policy_model, True),
    Mutant(
        "prefix one token too long when decoding", "sampler", "sampler_is_trainer", prefix_too_long, other_policy, True
    ),
    *[Mutant(what, "degenerate", caught_by, nothing, own(scorer)) for what, caught_by, scorer in DEGENERATE],
)
"""All of them."""
