"""Small models and hand-made scorers for the tests of the kit."""

import functools
from unittest import mock

import jax
import numpy as np
import path_twins as twins

from pit.data.template import Template, gap, gap_scoring, quality, rollout
from pit.data.tokenizer import Tokenizer
from pit.model.heads import RewardModel
from pit.model.params import build
from pit.testing.adapters import GapFunction
from pit.testing.checkpoint import CheckpointScorer, RowModel
from pit.testing.policy import DrawFormat, PolicyScorer
from pit.testing.rows import RowFormat
from pit.types import Message, Preference

CONTENT = (4, twins.VOCAB - 1)


def quick_programs():
    """Where a scorer is made: its programs are compiled without optimisation, which is most of their time."""
    return mock.patch.object(jax, "jit", twins.jit)


def row_format(reads):
    """Rows of the small models of `path_twins`."""
    trees = (gap(), gap_scoring(2, identity=True, swapped=True)[0])
    if reads == "quality":
        trees = (quality(), rollout(3, with_reference=False))
    return RowFormat(twins.CLOSINGS, twins.PAD, CONTENT, (6, 6, 6), trees, trees[0], reads == "gap")


def row_model(reads="gap", config=twins.LLAMA, *, programs=quick_programs):
    """A scorer of rows with random weights and programs of its own."""
    with programs():
        return RowModel(*twins.random_reward_model(config), row_format(reads))


def policy_model(*, programs=quick_programs):
    """A policy with random weights; one answer in several ends before the window."""
    form = DrawFormat(closing=twins.CLOSINGS[0], eos=twins.CLOSINGS[2], content=CONTENT, longest=6, capacity=8)
    with programs():
        return PolicyScorer(*twins.random_decoder(twins.LLAMA), form)


@functools.cache
def tokenizer():
    """Bytes and a few merges."""
    return Tokenizer.train_bpe(["red lamp because no why it is so"] * 3, 270)


def text_model(reads="gap", *, programs=quick_programs):
    """A scorer of every level with random weights."""
    template = Template(tokenizer(), (12, 12, 12))
    graphdef, params = build(RewardModel, twins.LLAMA, tokenizer().vocab_size, 0)
    # Scores of order one, so that rounding is what it is in a trained model.
    with programs():
        return CheckpointScorer(graphdef, {**params, "score": params["score"] * 3}, template, reads)


def scorer(function):
    """A gap scorer of a function of one prompt, output and reference."""

    def gaps(prompts, outputs, references):
        return np.array([function(*each) for each in zip(prompts, outputs, references, strict=True)], np.float32)

    return GapFunction(gaps)


def difference(quality):
    """A gap scorer of a function of one prompt and output."""
    return scorer(lambda x, y, ref: quality(x, y) - quality(x, ref))


def rows(count=40):
    """Preferences of sums: the better answer says the right one and why, the worse another; lengths alternate."""
    made = []
    for i in range(count):
        right = f"{i} plus 2 makes {i + 2}, because two steps after {i} comes {i + 2}."
        wrong = f"It makes {i + 9}" + (
            ", I think, although nobody here has ever counted any such thing with care." if i % 2 else "."
        )
        made.append(Preference((Message("user", f"What is {i} plus 2?"),), right, wrong))
    return made
