"""Scores and gaps of given answers against each order run alone in its own row."""

from functools import cache

import jax
import numpy as np
import path_twins as twins
from hypothesis import given
from hypothesis import strategies as st

from pit.model.model import Model
from pit.model.params import merge
from pit.rollout.score import LikelihoodScorer, ModelScorer

N = 2
FORMS = ("raw", "centred", "symmetric")
X, REF, Y = twins.ROLES

contents = st.lists(twins.CONTENT, max_size=twins.LONGEST)


@cache
def scorer():
    return ModelScorer(Model(*twins.random_reward_model(twins.GEMMA)), twins.SPLIT)


@cache
def separate():
    graphdef, params = twins.random_reward_model(twins.GEMMA)
    scores = twins.jit(lambda params, rows: twins.path_scores(merge(graphdef, params), rows))
    return lambda paths: jax.device_get(scores(params, twins.rows_of(paths)))[: len(paths)].astype(float)


@st.composite
def questions(draw):
    """Inputs, references and N outputs of 1 to 3 trees; an output is often the reference itself."""
    trees = range(draw(st.integers(1, 3)))
    inputs, references = ([draw(contents) for _ in trees] for _ in range(2))
    outputs = [[draw(st.one_of(contents, st.just(references[g]))) for g in trees] for _ in range(N)]
    return inputs, references, outputs


def gap_score(inputs, references, outputs):
    """r(y, ref) of lists of one tree each, in rows of their own."""
    rows = zip(inputs, references, outputs, strict=True)
    return separate()([(*x, X, *ref, REF, *y, Y) for x, ref, y in rows])


@given(question=questions())
def test_gaps_by_their_definitions(question):
    inputs, references, outputs = question
    gaps = {form: scorer().gap(inputs, references, outputs, form) for form in FORMS}
    ref_ref = gap_score(inputs, references, references)
    for i, ys in enumerate(outputs):
        y_ref, ref_y = gap_score(inputs, references, ys), gap_score(inputs, ys, references)
        y_y = gap_score(inputs, ys, ys)
        expected = {"raw": y_ref, "centred": y_ref - (y_y + ref_ref) / 2, "symmetric": (y_ref - ref_y) / 2}
        same = np.array([y == ref for y, ref in zip(ys, references, strict=True)])
        for form, gap in gaps.items():
            np.testing.assert_allclose(gap[:, i], expected[form], atol=4e-5, err_msg=form)
            if form != "raw":
                assert np.all(gap[same, i] == 0), "exactly 0 over itself"


@cache
def likelihood():
    return LikelihoodScorer(Model(*twins.random_decoder(twins.GEMMA)), twins.SPLIT)


@cache
def separate_tokens():
    graphdef, params = twins.random_decoder(twins.GEMMA)
    logprobs = twins.jit(lambda params, rows: twins.path_logp(merge(graphdef, params), rows))
    return lambda paths: jax.device_get(logprobs(params, twins.rows_of(paths)))[: len(paths)].astype(float)


@given(question=questions())
def test_likelihood_gaps_by_their_definitions(question):
    inputs, references, outputs = question

    def r(refs, ys):
        paths = [(*x, X, *ref, REF, *y, Y) for x, ref, y in zip(inputs, refs, ys, strict=True)]
        tokens = separate_tokens()(paths)
        each = zip(tokens, paths, ys, strict=True)
        return np.array([logp[len(path) - len(y) - 1 : len(path)].sum() for logp, path, y in each])

    gaps = {form: likelihood().gap(inputs, references, outputs, form) for form in FORMS}
    ref_ref = r(references, references)
    for i, ys in enumerate(outputs):
        y_ref, ref_y, y_y = r(references, ys), r(ys, references), r(ys, ys)
        expected = {"raw": y_ref, "centred": y_ref - (y_y + ref_ref) / 2, "symmetric": (y_ref - ref_y) / 2}
        same = np.array([y == ref for y, ref in zip(ys, references, strict=True)])
        for form, gap in gaps.items():
            wanted = expected[form] if form == "raw" else np.where(same, 0, expected[form])
            np.testing.assert_allclose(gap[:, i], wanted, rtol=1e-5, atol=2e-4, err_msg=form)


@given(question=questions())
def test_the_symmetric_gap_changes_its_sign_with_the_roles(question):
    inputs, references, (ys, _) = question
    one = scorer().gap(inputs, references, [ys, ys], "symmetric")
    two = scorer().gap(inputs, ys, [references, references], "symmetric")
    np.testing.assert_allclose(one, -two, atol=4e-5)


@given(question=questions())
def test_quality_by_its_definition(question):
    inputs, _, outputs = question
    quality = scorer().quality(inputs, outputs)
    for i, ys in enumerate(outputs):
        expected = separate()([(*x, X, *y, Y) for x, y in zip(inputs, ys, strict=True)])
        np.testing.assert_allclose(quality[:, i], expected, atol=4e-5)
