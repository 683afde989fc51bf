"""Rows of shared prefixes: a model reads in them what it reads in separate rows."""

import jax
import numpy as np
import path_twins as twins
from hypothesis import given
from hypothesis import strategies as st

from pit.model.decoder import Decoder
from pit.model.heads import RewardModel, row_logprobs
from pit.model.params import build, merge
from pit.testing.language import LanguageModel
from pit.testing.paths import live, packed_path, separate_rows
from pit.testing.shared import shared_rows

TOKENS = st.integers(1, 3)
PATHS = st.lists(st.lists(TOKENS, max_size=90).map(tuple), max_size=9)


@given(paths=PATHS)
def test_each_path_is_read_from_its_root_and_shared_tokens_are_held_once(paths):
    rows = list(shared_rows(paths, 96))
    assert sorted(place for row in rows for place in row.paths) == list(range(len(paths)))
    for row in rows:
        batch, held = row.batch, [paths[place] for place in row.paths]
        for place, path, leaf in zip(row.paths, held, batch.leaf[0], strict=False):
            indices = row.tokens[row.paths.index(place)]
            assert tuple(batch.token[0, indices]) == path
            assert tuple(leaf) == ((0, indices[-1]) if path else (-1, -1))
            assert batch.position[0, indices].tolist() == list(range(len(path)))
            seen = [k for k in range(indices[-1] + 1) if batch.visible_until[0, k] > indices[-1]] if path else []
            assert seen == indices.tolist()
        prefixes = {path[:end] for path in held for end in range(1, len(path) + 1)}
        assert sorted(packed_path(batch, *place) for place in live(batch)) == sorted(prefixes)


def test_rows_have_few_lengths_and_at_most_64_leaves():
    for count, length in ((1, 64), (64, 64), (65, 128), (1024, 1024), (1025, 1536), (1537, 2048), (2049, 3072)):
        assert [row.batch.token.shape for row in shared_rows([(5,) * count])] == [(1, length)]
    assert [len(row.paths) for row in shared_rows([(5, i) for i in range(130)])] == [64, 64, 2]
    # Two long texts that end differently are one row, and so is a short one that they begin with.
    assert [row.paths for row in shared_rows([(5,) * 9, (5,) * 1600 + (6,), (5,) * 1600 + (7,)])] == [[2, 1, 0]]


PATHS_OF_A_MODEL = [(5, 6, 7), (5, 6, 8, 9), (5, 6), (9,), (5, 6, 7)]


def test_log_probs_are_those_of_separate_rows():
    graphdef, params = build(Decoder, twins.LLAMA, 20, 0)
    model = LanguageModel.__new__(LanguageModel)
    model._params = params
    model._logprobs = jax.jit(lambda params, *arrays: row_logprobs(merge(graphdef, params), *arrays))
    batch = separate_rows(PATHS_OF_A_MODEL, 5, 64)
    alone = np.asarray(model._logprobs(params, batch.token, batch.position, batch.visible_until, batch.previous))
    last = [2, 1, 0, 1, 3]
    for row, (path, count) in enumerate(zip(PATHS_OF_A_MODEL, last, strict=True)):
        together = model.logprobs(PATHS_OF_A_MODEL, last)[row]
        np.testing.assert_allclose(together, alone[row, len(path) - count : len(path)], atol=1e-5)


def test_scores_are_those_of_separate_rows():
    graphdef, params = build(RewardModel, twins.LLAMA, 20, 0)
    score = jax.jit(lambda batch: merge(graphdef, params)(*batch))
    fields = ("token", "position", "visible_until", "leaf")
    batch = separate_rows(PATHS_OF_A_MODEL, 5, 64)
    alone = np.asarray(score([getattr(batch, name) for name in fields]))[:, 0]
    (row,) = shared_rows(PATHS_OF_A_MODEL)
    together = np.asarray(score([getattr(row.batch, name) for name in fields]))[0, : len(row.paths)]
    np.testing.assert_allclose(together, alone[row.paths], atol=1e-5)
