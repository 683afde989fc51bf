"""Small models and hand-made scorers for the tests of `pit.testing`."""

import copy
import dataclasses
import functools
from unittest import mock

import jax
import numpy as np
import path_twins as twins

from pit.data.template import RoleTemplate, gap, gap_scoring, quality, rollout
from pit.data.tokenizer import Tokenizer
from pit.model.heads import RewardModel
from pit.model.params import build
from pit.testing.adapters import GapFunction
from pit.testing.checkpoint import CheckpointScorer, RowModelScorer
from pit.testing.invariants import Case
from pit.testing.policy import DrawFormat, PolicyScorer
from pit.testing.rows import RowFormat
from pit.types import Message, Preference

CONTENT = (4, twins.VOCAB - 1)
ONE_LAYER = dataclasses.replace(twins.LLAMA, layers=1)
"""The model of most tests, which is compiled again and again; slow ones have two layers."""


def quick_programs():
    """Return a context in which scorers compile without optimisation, because compiling takes most of their time."""
    return mock.patch.object(jax, "jit", twins.jit)


def row_format(reads):
    """Return the format of the small models of `path_twins`."""
    trees = (gap(), gap_scoring(2, identity=True, swapped=True)[0])
    if reads == "quality":
        trees = (quality(), rollout(3, with_reference=False))
    return RowFormat(twins.CLOSINGS, twins.PAD, CONTENT, (6, 6, 6), trees, trees[0], reads == "gap")


def row_model(reads="gap", config=ONE_LAYER, *, programs=quick_programs):
    """Return a scorer of rows with random weights and newly compiled programs."""
    with programs():
        return RowModelScorer(*twins.random_reward_model(config), row_format(reads))


def policy_model(config=ONE_LAYER, *, programs=quick_programs):
    """Return a policy with random weights; some of its answers end before the window."""
    form = DrawFormat((twins.ROLES[0],), eos=twins.ROLES[2], content=CONTENT, longest=6, capacity=8, filters=True)
    with programs():
        return PolicyScorer(*twins.random_decoder(config), form)


shared_row_model, shared_policy_model = functools.cache(row_model), functools.cache(policy_model)
"""The same with compiled programs that tests share; for patches that change neither the model nor its loss."""


def row_model_with_new_loss(reads="gap"):
    """Return a scorer of rows that compiles its loss again and shares its other programs; for patches of the loss."""
    model = copy.copy(shared_row_model(reads))
    with quick_programs():
        model._loss = RowModelScorer(*twins.random_reward_model(ONE_LAYER), row_format(reads))._loss
    return model


@functools.cache
def tokenizer():
    """Return a tokenizer of bytes and a few merges."""
    return Tokenizer.train_bpe(["red lamp because no why it is so"] * 3, 270)


def text_model(reads="gap", *, programs=quick_programs):
    """Return a scorer with every method and random weights."""
    template = RoleTemplate(tokenizer(), (12, 12, 12))
    graphdef, params = build(RewardModel, ONE_LAYER, tokenizer().vocab_size, 0)
    # Scores of magnitude one, so that rounding is the same as in a trained model.
    with programs():
        return CheckpointScorer(graphdef, {**params, "score": params["score"] * 3}, template, reads)


shared_text_model = functools.cache(text_model)
"""The same with compiled programs that tests share."""


def scorer(function):
    """Return a gap scorer made of a function of one prompt, output and reference."""

    def gaps(prompts, outputs, references):
        return np.array([function(*item) for item in zip(prompts, outputs, references, strict=True)], np.float32)

    return GapFunction(gaps)


def difference(quality):
    """Return a gap scorer made of a function of one prompt and output."""
    return scorer(lambda x, y, ref: quality(x, y) - quality(x, ref))


def rows(count=40):
    """Return preferences about sums: the better answer is correct and gives a reason; either may be the longer one."""
    preferences = []
    for i in range(count):
        right = f"{i} plus 2 makes {i + 2}, because two steps after {i} comes {i + 2}."
        wrong = f"It makes {i + 9}" + (
            ", I think, although nobody here has ever counted any such thing with care." if i % 2 else "."
        )
        preferences.append(Preference((Message("user", f"What is {i} plus 2?"),), right, wrong))
    return preferences


def case():
    """Return the first of the preferences as a case."""
    first, second = rows(2)
    return Case.of(first, second.better, 0)
