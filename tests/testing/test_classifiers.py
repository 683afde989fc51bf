"""Sequence classifiers as scorers: padding, chat templates, special tokens, variants; transformers' own, and ours."""

import importlib.util

import cases
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from fakes import BOS, EOS, FakeClassifier, FakeTokenizer

from pit.model.heads import RewardModel
from pit.model.params import build, merge
from pit.model.pretrained import save_pretrained
from pit.testing.adapters import Difference
from pit.testing.classifiers import SequenceClassifier
from pit.testing.errors import CheckError
from pit.testing.invariants.served import SERVED_INVARIANTS
from pit.testing.report import Status
from pit.testing.run import Request, run_check
from pit.testing.scorers import HALF_ROUNDING, ROUNDING
from pit.testing.served import Variant
from pit.types import Message

ASK = (Message("user", "why"),)


@pytest.mark.parametrize(
    ("side", "reads", "right"),
    [
        ("right", "last_token", True),
        ("left", "last_token", True),
        ("right", "counted", True),
        ("left", "counted", False),
    ],
)
def test_left_padding_shows_in_the_scores_of_a_classifier(side, reads, right):
    model = SequenceClassifier(FakeClassifier(reads), FakeTokenizer(side), batch_size=2)
    texts = ["a", "a much longer answer", "b"]
    scores = model.quality([ASK] * 3, texts)
    expected = [sum(map(ord, f"why\n\n{text}")) / 1000 for text in texts]
    assert np.allclose(scores, expected, rtol=1e-6) is right


def test_a_chat_template_is_used_where_there_is_one():
    """The template has written BOS, so that the tokenizer may not add another one."""
    model = SequenceClassifier(FakeClassifier(), FakeTokenizer(chat=True, adds_bos=True))
    text = f"{chr(BOS)}user: why\nassistant: x\n{chr(EOS)}\n"
    assert model.tokens([ASK], ["x"]) == [tuple(map(ord, text))]
    assert model.template_tokens(ASK, "x") == tuple(map(ord, text))
    assert model.quality([ASK], ["x"])[0] == pytest.approx(sum(map(ord, text)) / 1000)
    assert model.quality([], []).shape == (0,)


def test_a_text_without_a_template_gets_special_tokens():
    model = SequenceClassifier(FakeClassifier(), FakeTokenizer(adds_bos=True), max_length=8)
    assert model.tokens([ASK], ["x"]) == [(BOS, *map(ord, "why\n\nx"))]
    assert model.tokens([ASK], ["xyz"]) == [(BOS, *map(ord, "why\n\nxy"))]
    assert model.template_tokens(ASK, "x") is None
    assert (model.facts.bos, model.facts.ends, model.facts.max_length) == (BOS, {EOS}, 8)


def test_variants_are_other_objects():
    tokenizer, model = FakeTokenizer(), FakeClassifier(dtype="torch.bfloat16", adapter=1.0)
    scorer = Difference(SequenceClassifier(model, tokenizer))
    assert set(Variant) == {Variant.OTHER_PADDING, Variant.FLOAT32, Variant.NO_ADAPTER}
    other = scorer.variant(Variant.OTHER_PADDING)
    assert (tokenizer.padding_side, other.model._tokenizer.padding_side) == ("right", "left")
    assert scorer.variant(Variant.FLOAT32).model.rounding == ROUNDING
    assert (model.dtype, scorer.rounding) == ("torch.bfloat16", HALF_ROUNDING)
    with_adapter, without = (
        each.gap([ASK], ["no"], ["yes"])[0] for each in (scorer, scorer.variant(Variant.NO_ADAPTER))
    )
    assert with_adapter != without == pytest.approx((ord("n") + ord("o") - sum(map(ord, "yes"))) / 1000, abs=1e-6)
    assert model.adapter == 1.0
    plain = Difference(SequenceClassifier(FakeClassifier(), FakeTokenizer()))
    assert plain.variant(Variant.FLOAT32) is plain.variant(Variant.NO_ADAPTER) is None


def served(scorer):
    report = run_check(Difference(scorer), cases.rows(4), Request("m", "d", 6), invariants=SERVED_INVARIANTS)
    return {result.name: result.detail or result.status.value for result in report.results}, report.notes


def test_a_correct_classifier_passes_every_invariant_of_served_models():
    model = FakeClassifier(dtype="torch.bfloat16", adapter=1.0)
    results, notes = served(SequenceClassifier(model, FakeTokenizer(chat=True), max_length=64))
    assert results == {invariant.name: "held" for invariant in SERVED_INVARIANTS}
    assert notes == ("6 of 8 texts reach the limit of 64 tokens, after which the model reads nothing",)


def test_what_a_classifier_lacks_is_named():
    results, notes = served(SequenceClassifier(FakeClassifier(), FakeTokenizer()))
    assert results["template_once"] == "needs a chat template"
    assert results["dtype_bound"] == "needs the variant 'in float32'"
    assert results["adapter_counts"] == "needs the variant 'without its adapter'"
    assert results["ends_with_eos"].startswith("violated: no token that ends a text ([2]) is among the last 3")
    assert notes == ("0 of 8 texts reach the limit of 2048 tokens, after which the model reads nothing",)
    function = run_check(cases.difference(lambda x, y: 0.0), [], Request("m", "d"), invariants=SERVED_INVARIANTS)
    assert {result.status for result in function.results} == {Status.NOT_APPLICABLE}
    assert function.results[0].detail == "needs template_tokens(), tokens()"


@pytest.mark.parametrize(("dtype", "rounding"), [("torch.bfloat16", HALF_ROUNDING), ("torch.float32", ROUNDING)])
def test_half_precision_has_a_larger_rounding(dtype, rounding):
    model = FakeClassifier("last_token")
    model.dtype = dtype
    assert Difference(SequenceClassifier(model, FakeTokenizer("right"))).rounding == rounding


HAVE_TRANSFORMERS = all(map(importlib.util.find_spec, ("torch", "transformers")))


@pytest.mark.skipif(HAVE_TRANSFORMERS, reason="torch and transformers are installed")
def test_without_transformers_the_error_names_the_packages(tmp_path):
    with pytest.raises(CheckError, match=r"^\w+: is not installed.*pip install torch transformers"):
        SequenceClassifier.open(tmp_path)


@pytest.mark.skipif(not HAVE_TRANSFORMERS, reason="needs torch and transformers")
@pytest.mark.filterwarnings("default")
def test_a_real_classifier_scores_what_was_saved(tmp_path):
    """The adapter on a reward model in transformers' format gives the scores of its separate paths."""
    tokenizer = cases.tokenizer()
    eos, pad = tokenizer.role_ids["output"], tokenizer.role_ids["pad"]
    graphdef, params = build(RewardModel, twins.LLAMA, tokenizer.vocab_size, 0)
    text = {"tokenizer": tokenizer.to_json(), "eos_ids": [eos], "pad_id": pad}
    save_pretrained(tmp_path / "m", twins.LLAMA, params, tokenizer.vocab_size, **text)
    model = SequenceClassifier.open(tmp_path / "m", batch_size=2)
    outputs = ["red", "a red lamp because it is so", "no"]
    paths = [tuple(tokenizer.encode(f"why\n\n{output}")) for output in outputs]
    rows = twins.rows_of(paths, rows=3, length=max(map(len, paths)))
    rows = {name: jnp.asarray(value) for name, value in rows.items()}
    expected = twins.path_scores(merge(graphdef, params), rows)
    np.testing.assert_allclose(model.quality([ASK] * 3, outputs), expected, atol=1e-4)
