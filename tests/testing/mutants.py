"""Mutants: wrong variants of the packer, the models, the losses and the sampler, and degenerate scorers.

Each is a patch of the real code, or a wrong scorer, with the invariant that must catch it. docs/testing.md has the same
table.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import cases
import jax.numpy as jnp
import numpy as np
from degenerate import DEGENERATE
from fakes import BOS, FakeClassifier, FakeTokenizer

from pit.data import packing
from pit.losses import gap as gap_losses
from pit.losses.total import Total
from pit.model import decoder, heads
from pit.rollout import sample as sampling
from pit.rollout import score as scoring
from pit.stages import reward
from pit.testing import policy
from pit.testing.adapters import Difference
from pit.testing.checkpoint import RowModelScorer
from pit.testing.classifiers import SequenceClassifier
from pit.types import GAP_LL, GAP_LW, GAP_WL, GAP_WW


class Mutant(NamedTuple):
    """A wrong variant.

    fault: description of the fault.
    part: part of PIT that has it.
    caught_by: invariant that must catch it.
    patch: function that returns the context in which the fault exists.
    make: function that returns the scorer to check.
    slow: whether `make test` leaves it out.
    """

    fault: str
    part: str
    caught_by: str
    patch: Callable[[], Any]
    make: Callable[[], Any]
    slow: bool = False


def packed(change):
    """Return a patch that changes the batches of the packer by a function from batch to arrays."""
    real = packing.materialise

    def materialise(*arguments, **options):
        batch = real(*arguments, **options)
        return dataclasses.replace(batch, **change(batch))

    return lambda: mock.patch.object(packing, "materialise", materialise)


def alive(batch):
    return batch.visible_until > np.arange(batch.token.shape[1], dtype=np.int32)


def tree_ends(batch):
    """Return `visible_until` such that every token is visible to the end of its whole tree."""
    until = batch.visible_until.copy()
    for row, first in np.argwhere((batch.position == 0) & alive(batch)):
        until[row, first : until[row, first]] = until[row, first]
    return until


def attention(sees, *, guard=True):
    """Return a patch with dense attention whose mask is `sees(q, k, until)`; unguarded padding is NaN."""

    def run(q, k, v, visible_until, *, scale=None, **_):
        index = jnp.arange(q.shape[1], dtype=jnp.int32)
        until = visible_until[:, None, :]
        living = visible_until > index[None, :]
        visible = sees(index[None, :, None], index[None, None, :], until) & living[:, :, None] & living[:, None, :]
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) * jnp.float32(q.shape[-1] ** -0.5 if scale is None else scale)
        safe = visible | ~living[:, :, None] if guard else visible
        weights = jnp.exp(jnp.where(safe[:, None], logits, -jnp.inf))
        out = jnp.einsum("bnts,bsnh->btnh", weights / jnp.sum(weights, axis=-1, keepdims=True), v)
        return jnp.where(living[:, :, None, None], out, jnp.float32(0)) if guard else out

    return lambda: mock.patch.object(decoder, "three_way_attention", run)


def embedded(change):
    """Return a patch that changes embeddings by a function of [B, T, D]."""
    real = decoder.Decoder.embed
    return lambda: mock.patch.object(decoder.Decoder, "embed", lambda self, *rows: change(real(self, *rows)))


def scored(change):
    """Return a patch of the reward model by a function of (real call, token, position, visible_until, leaf)."""
    real = heads.RewardModel.__call__
    return lambda: mock.patch.object(
        heads.RewardModel, "__call__", lambda self, *rows: change(lambda *r: real(self, *r), *rows)
    )


def ordered_pairs(*pairs):
    return lambda: mock.patch.object(gap_losses, "ORDERED_PAIRS", pairs)


def loss(change):
    """Return a patch of the five-pair loss by a function of (real loss, scores, present)."""
    real = gap_losses.five_pairs
    return lambda: mock.patch.object(reward, "five_pairs", lambda score, present: change(real, score, present))


def averaged(real, score, present):
    total = real(score, present)
    return Total(total.sum / total.weight, jnp.float32(1))


def noisy():
    real, dice = RowModelScorer.score_rows, np.random.default_rng(0)
    noise = lambda scores: scores + dice.normal(0, 0.01, scores.shape).astype(np.float32)  # noqa: E731
    return mock.patch.object(RowModelScorer, "score_rows", lambda self, batch: noise(real(self, batch)))


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
    """Return a patch that treats EOS as padding and counts the other tokens."""
    real = sampling.sample

    def sample(*arguments, **options):
        samples = real(*arguments, **options)
        eos = options["eos_ids"][0]
        length = np.sum((samples.token != eos) & (samples.token != 0), axis=-1).astype(np.int32)
        return samples._replace(length=length)

    return mock.patch.object(policy, "sample", sample)


def prefix_too_long():
    real = decoder.Decoder.decode

    def longer(self, token, prefixes, suffixes, step):
        return real(self, token, prefixes, suffixes, step._replace(prefix_length=step.prefix_length + 1))

    return mock.patch.object(decoder.Decoder, "decode", longer)


def other_policy():
    """Return a policy with another static configuration, so that it uses no program compiled for the right one."""
    return cases.policy_model(dataclasses.replace(cases.ONE_LAYER, norm_eps=2e-5))


def in_batch(change):
    """Return a maker of a scorer by length whose scores are changed by a function of all scores of a call."""
    return lambda: cases.GapFunction(
        lambda xs, ys, refs: change(np.array([len(y) - len(ref) for y, ref in zip(ys, refs, strict=True)], np.float32))
    )


def left_padded():
    return Difference(SequenceClassifier(FakeClassifier("counted"), FakeTokenizer("left")))


class Doubled(FakeTokenizer):
    """A tokenizer that adds BOS whether it is wanted or not."""

    def __call__(self, texts, **options):
        return super().__call__([f"{chr(BOS)}{text}" for text in texts], **options)


class TwiceTemplated(FakeTokenizer):
    """A tokenizer whose text is rendered by the caller, and again here."""

    def apply_chat_template(self, messages, *, tokenize, return_dict=False):
        if not tokenize:
            text = super().apply_chat_template(messages, tokenize=False)
            messages = [{"role": "user", "content": text}]
        return super().apply_chat_template(messages, tokenize=tokenize)


class Endless(FakeTokenizer):
    """A tokenizer whose texts have no EOS."""

    def __call__(self, texts, **options):
        return super().__call__([text.replace("\x02\n", "") for text in texts], **options)


def served(tokenizer=None, **options):
    """Return a maker of a served classifier."""
    return lambda: Difference(SequenceClassifier(FakeClassifier(**options), tokenizer or FakeTokenizer(chat=True)))


def short_sighted():
    return cases.difference(lambda x, y: float(sum(map(ord, y[:500]))))


def dropout():
    dice = np.random.default_rng(0)
    return cases.difference(lambda x, y: len(y) * (dice.random() > 0.1))


def existing(scorer):
    return lambda: scorer


no_patch = contextlib.nullcontext
FIVE = gap_losses.ORDERED_PAIRS
SWAPPED = {GAP_WL: GAP_LW, GAP_LW: GAP_WL}


def of_rows(part, fault, caught_by, patch, *, slow=True, make=cases.row_model):
    """Return a mutant that a scorer of rows shows; it compiles programs of its own, which contain the fault."""
    return Mutant(fault, part, caught_by, patch, make, slow)


def of_packer(fault, change, *, slow=True):
    """Return a mutant of the packer; its batches need no new programs."""
    return of_rows("packer", fault, "tree_is_paths", packed(change), slow=slow, make=cases.shared_row_model)


def of_loss(fault, caught_by, patch, *, slow=True, reads="gap"):
    """Return a mutant of the loss, whose program alone is compiled again."""
    make = functools.partial(cases.row_model_with_new_loss, reads)
    return of_rows("loss", fault, caught_by, patch, slow=slow, make=make)


def of_function(fault, caught_by, make):
    """Return a mutant whose scorer is wrong itself, without a patch."""
    return Mutant(fault, "scorer", caught_by, no_patch, make)


def of_served(fault, caught_by, make):
    """Return a mutant of a model behind a tokenizer."""
    return Mutant(fault, "served", caught_by, no_patch, make)


def of_policy(fault, caught_by, patch, make=cases.policy_model):
    return Mutant(fault, "sampler", caught_by, patch, make, slow=True)


MUTANTS = (
    of_packer("visible_until one too small", lambda b: {"visible_until": b.visible_until - alive(b)}, slow=False),
    of_packer(
        "visible_until one too large",
        lambda b: {"visible_until": np.minimum(b.visible_until + alive(b), b.token.shape[1])},
    ),
    of_packer("a sibling sees its sibling", lambda b: {"visible_until": tree_ends(b)}),
    of_packer(
        "position is the index in the row",
        lambda b: {"position": np.broadcast_to(np.arange(b.token.shape[1], dtype=np.int32), b.token.shape)},
    ),
    of_packer("two tokens share a position", lambda b: {"position": b.position // 2}),
    of_packer("leaf table one token early", lambda b: {"leaf": b.leaf - np.array([0, 1], np.int32) * (b.leaf >= 0)}),
    of_packer(
        "trees of a batch mixed up", lambda b: {"leaf": np.where(b.leaf >= 0, np.roll(b.leaf, 1, axis=1), b.leaf)}
    ),
    of_rows("model", "attention is not causal", "after_the_end", attention(lambda q, k, until: q < until), slow=False),
    of_rows("model", "attention ignores visible_until", "row_neighbours", attention(lambda q, k, until: k <= q)),
    of_rows(
        "model",
        "attention reaches back five tokens only",
        "tree_is_paths",
        attention(lambda q, k, until: (k <= q) & (q < until) & (k > q - 5)),
    ),
    of_rows(
        "model",
        "softmax of padding is 0 / 0",
        "gradient_of_paths",
        attention(lambda q, k, until: (k <= q) & (q < until), guard=False),
    ),
    of_rows(
        "model",
        "embeddings minus the mean of their row",
        "padding_content",
        embedded(lambda x: x - jnp.mean(x, axis=1, keepdims=True)),
        slow=False,
    ),
    of_rows(
        "model",
        "embeddings minus the mean of the batch",
        "row_neighbours",
        embedded(lambda x: x - jnp.mean(x, axis=0, keepdims=True)),
    ),
    of_rows(
        "model",
        "score divided by the length of the row",
        "padding_length",
        scored(lambda real, token, *r: real(token, *r) / jnp.float32(token.shape[1])),
    ),
    of_rows(
        "model",
        "score depends on the index of the row",
        "row_order",
        scored(lambda real, *r: real(*r) + jnp.float32(0.01) * r[-1][..., 0].astype(jnp.float32)),
    ),
    of_rows(
        "model",
        "score read one token late",
        "after_the_end",
        scored(lambda real, *r: real(*r[:-1], jnp.where(r[-1] >= 0, r[-1] + jnp.array([0, 1], jnp.int32), -1))),
    ),
    of_rows(
        "model",
        "score divided by the number of trees",
        "microbatches",
        scored(lambda real, *r: real(*r) / jnp.sum(r[-1][:, 0, 0] >= 0).astype(jnp.float32)),
    ),
    of_rows(
        "model",
        "score includes the score of a sibling",
        "off_path_places",
        scored(lambda real, *r: real(*r) + real(*r[:-1], jnp.roll(r[-1], -1, axis=1))),
    ),
    of_rows("model", "dropout left on", "rows_deterministic", noisy, slow=False, make=cases.shared_row_model),
    of_loss("a pair is missing", "loss_definition", ordered_pairs(*FIVE[1:]), slow=False),
    of_loss("a pair is reversed", "loss_definition", ordered_pairs(FIVE[0][::-1], *FIVE[1:])),
    of_loss("the identities are ordered too", "loss_definition", ordered_pairs(*FIVE, (GAP_WW, GAP_LL))),
    of_loss(
        "candidate and reference swapped",
        "loss_definition",
        ordered_pairs(*[(SWAPPED.get(high, high), SWAPPED.get(low, low)) for high, low in FIVE]),
    ),
    of_loss(
        "better and worse swapped in R_P",
        "loss_definition",
        lambda: mock.patch.object(reward, "pairwise", lambda s, p, real=gap_losses.pairwise: real(s[:, ::-1], p)),
        reads="quality",
    ),
    of_loss("mean over the microbatch", "loss_of_trees", loss(averaged), slow=False),
    of_loss("absent trees count", "loss_of_trees", loss(lambda real, s, p: real(s, jnp.ones_like(p)))),
    Mutant("candidate and reference swapped", "scorer", "text_is_path", swapped_roles, cases.shared_text_model, True),
    Mutant("raw gap returned as centred", "scorer", "centred_identity", raw_for_centred, cases.shared_text_model, True),
    of_function("sequence classifier with left padding", "padding", left_padded),
    of_function("scores normalised by the batch", "batch_size", in_batch(lambda s: s / np.float32(len(s)))),
    of_function(
        "score depends on the index in the batch",
        "item_order",
        in_batch(lambda s: s + np.arange(len(s), dtype=np.float32)),
    ),
    of_function("integer scores", "well_formed", in_batch(lambda s: s.astype(np.int32))),
    of_function("dropout left on", "deterministic", dropout),
    of_served("BOS doubled", "bos_once", served(Doubled(chat=True))),
    of_served("chat template applied twice", "template_once", served(TwiceTemplated(chat=True))),
    of_served("EOS missing", "ends_with_eos", served(Endless(chat=True))),
    of_served("tokenizer of another model", "ids_in_vocabulary", served(rows=100)),
    of_served("read at the count of its tokens, padded on the left", "padding_side", served(reads="counted")),
    of_served("overflow in bfloat16", "dtype_bound", served(dtype="torch.bfloat16", overflows=True)),
    of_served("adapter not loaded", "adapter_counts", served(adapter=0.0)),
    of_served("cut after 500 letters without a word", "reads_the_end", short_sighted),
    of_policy("trainer ignores the temperature", "sampler_is_trainer", cold_trainer),
    of_policy("EOS treated as padding", "draws_end", lengths_by_padding, cases.shared_policy_model),
    of_policy("prefix one token too long when decoding", "sampler_is_trainer", prefix_too_long, other_policy),
    *[Mutant(fault, "degenerate", caught_by, no_patch, existing(scorer)) for fault, caught_by, scorer in DEGENERATE],
)
"""All mutants."""
