"""Scorers and adapters: what levels they have, what they return, and how a bad one is named."""

import importlib.util
import re
from types import SimpleNamespace

import cases
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.model.heads import RewardModel
from pit.model.pretrained import save_pretrained
from pit.model.params import build, merge
from pit.testing import adapters
from pit.testing.faults import CheckError, NotFinite, Raised, WrongShape, WrongType
from pit.testing.scorers import HALF_ROUNDING, ROUNDING, Item, Level, gaps, levels_of, text_of
from pit.types import Message

ASK = (Message("user", "why"),)
ITEMS = (Item(ASK, "because", "no"), Item(ASK, "no", "because it is so"))


def lengths(prompts, outputs, references):
    return np.array([len(y) - len(r) for y, r in zip(outputs, references, strict=True)], np.float32)


def quality(prompts, outputs):
    return np.array([len(x) + 10 * len(y) for x, y in zip(prompts, outputs, strict=True)], np.float32)


def test_a_function_of_three_is_a_gap_scorer():
    scorer = adapters.as_scorer(lengths, "lengths")
    assert levels_of(scorer) == {Level.GAP}
    assert gaps(scorer, ITEMS).tolist() == [5.0, -14.0]


def test_a_function_of_two_is_a_difference_with_a_zero():
    scorer = adapters.as_scorer(quality, "quality")
    assert levels_of(scorer) == {Level.GAP, Level.CENTRED}
    assert gaps(scorer, ITEMS).tolist() == [50.0, -140.0]
    assert gaps(scorer, [Item(ASK, "no", "no")], Level.CENTRED).tolist() == [0.0]


def test_an_object_with_quality_is_wrapped_and_a_scorer_is_kept():
    model = SimpleNamespace(quality=quality, rounding=0.5)
    scorer = adapters.as_scorer(model, "model")
    assert scorer.rounding == 0.5
    assert adapters.as_scorer(scorer, "again") is scorer


@pytest.mark.parametrize("found", [3, dict, lambda prompts: 0])
def test_what_is_no_scorer_is_refused(found):
    with pytest.raises(CheckError, match=r"^mine: is a .*; must be a scorer .*wrap it in one$"):
        adapters.as_scorer(found, "mine")


@pytest.mark.parametrize(
    ("result", "fault", "message"),
    [
        (
            np.zeros((2, 1), np.float32),
            WrongShape,
            r"gap() has shape (2, 1), not (2,); return one score for each question",
        ),
        (np.zeros(3, np.float32), WrongShape, "gap() has shape (3,), not (2,)"),
        (np.zeros(2, np.int64), WrongType, "gap() has type int64, not float32"),
        (np.zeros(2), WrongType, "gap() has type float64, not float32"),
        (np.array([0, np.nan], np.float32), NotFinite, "gap()[1] is nan; 1 of 2 are not finite"),
        (np.array([np.inf, np.nan], np.float32), NotFinite, "gap()[0] is inf; 2 of 2 are not finite"),
    ],
)
def test_bad_results_are_told_apart(result, fault, message):
    with pytest.raises(fault, match=f"^{re.escape(message)}"):
        gaps(adapters.GapFunction(lambda *_: result), ITEMS)


def test_a_scorer_that_raises_is_named():
    def fails(prompts, outputs, references):
        raise KeyError("word")

    with pytest.raises(Raised, match=r"^gap\(\) raised KeyError: 'word'$"):
        gaps(adapters.GapFunction(fails), ITEMS)


def test_a_quality_of_another_shape_is_named():
    scorer = adapters.Difference(adapters.QualityFunction(lambda prompts, outputs: np.zeros(3, np.float32)))
    with pytest.raises(
        WrongShape, match=r"^quality\(\) has shape \(3,\), not \(4,\); return one score for each output$"
    ):
        gaps(scorer, ITEMS)


def test_conversations_as_text():
    assert text_of(ASK) == "why"
    assert text_of((Message("system", "be brief"), *ASK)) == "system: be brief\n\nuser: why"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("no_such_module:gap", "no_such_module:gap: cannot be imported (No module named 'no_such_module')"),
        ("math:gap", "math:gap: cannot be imported (module 'math' has no attribute 'gap')"),
    ],
)
def test_what_cannot_be_imported_says_so(word, message):
    with pytest.raises(CheckError, match=f"^{re.escape(message)}; name MODULE:NAME of something Python finds$"):
        adapters.imported(word)


class Tensor:
    """The part of torch's tensors that the adapter uses."""

    def __init__(self, values):
        self.values = values

    def float(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.values.astype(np.float32)


class FakeTokenizer:
    """Letters as tokens, padded with 0 on one side."""

    chat_template = None

    def __init__(self, padding_side):
        self.padding_side = padding_side

    def __call__(self, texts, *, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == (True, True, "pt")
        rows = [[ord(letter) for letter in text][:max_length] for text in texts]
        width = max(map(len, rows))
        left = self.padding_side == "left"
        ids = [[0] * (width - len(r)) + r if left else r + [0] * (width - len(r)) for r in rows]
        return {"input_ids": np.array(ids), "attention_mask": (np.array(ids) > 0).astype(int)}


class FakeClassifier:
    """Sums the letters up to the place that it reads: the last letter, or the place whose number is their count."""

    dtype = "torch.float32"

    def __init__(self, reads):
        self.reads = reads

    def __call__(self, input_ids, attention_mask):
        width = input_ids.shape[1]
        # As many decoders of transformers did: the number of tokens that are not padding, less one.
        counted = np.sum(input_ids != 0, axis=1) - 1
        last = width - 1 - np.argmax(attention_mask[:, ::-1], axis=1)
        place = {"counted": counted, "last_token": last}[self.reads]
        logits = np.array([row[: i + 1].sum() for row, i in zip(input_ids, place, strict=True)], float)[:, None] / 1000
        return SimpleNamespace(logits=Tensor(logits))


@pytest.mark.parametrize(
    ("side", "reads", "right"),
    [
        ("right", "last_token", True),
        ("left", "last_token", True),
        ("right", "counted", True),
        ("left", "counted", False),
    ],
)
def test_a_classifier_under_left_padding_is_seen_by_its_scores(side, reads, right):
    model = adapters.SequenceClassifier(FakeClassifier(reads), FakeTokenizer(side), batch_size=2)
    texts = ["a", "a much longer answer", "b"]
    scores = model.quality([ASK] * 3, texts)
    expected = [sum(map(ord, f"why\n\n{text}")) / 1000 for text in texts]
    assert np.allclose(scores, expected, rtol=1e-6) is right


def test_a_chat_template_is_used_where_there_is_one():
    tokenizer = FakeTokenizer("right")
    tokenizer.chat_template = "there is one"
    tokenizer.apply_chat_template = lambda messages, tokenize: "/".join(m["content"] for m in messages)
    model = adapters.SequenceClassifier(FakeClassifier("last_token"), tokenizer)
    assert model.quality([ASK], ["x"])[0] == pytest.approx(sum(map(ord, "why/x")) / 1000)
    assert model.quality([], []).shape == (0,)


@pytest.mark.parametrize(("dtype", "rounding"), [("torch.bfloat16", HALF_ROUNDING), ("torch.float32", ROUNDING)])
def test_half_precision_is_allowed_more(dtype, rounding):
    model = FakeClassifier("last_token")
    model.dtype = dtype
    assert adapters.Difference(adapters.SequenceClassifier(model, FakeTokenizer("right"))).rounding == rounding


HAVE_TRANSFORMERS = all(map(importlib.util.find_spec, ("torch", "transformers")))


@pytest.mark.skipif(HAVE_TRANSFORMERS, reason="torch and transformers are installed")
def test_without_transformers_the_remedy_is_named(tmp_path):
    message = r"^\w+: is not installed, and a transformers model needs it; pip install torch transformers$"
    with pytest.raises(CheckError, match=message):
        adapters.SequenceClassifier.open(tmp_path)


@pytest.mark.skipif(not HAVE_TRANSFORMERS, reason="needs torch and transformers")
@pytest.mark.filterwarnings("default")
def test_a_real_classifier_scores_what_was_saved(tmp_path):
    """A reward model written for transformers, asked through the adapter, against its paths alone."""
    tokenizer = cases.tokenizer()
    eos, pad = tokenizer.role_ids["output"], tokenizer.role_ids["pad"]
    graphdef, params = build(RewardModel, twins.LLAMA, tokenizer.vocab_size, 0)
    text = {"tokenizer": tokenizer.to_json(), "eos_ids": [eos], "pad_id": pad}
    save_pretrained(tmp_path / "m", twins.LLAMA, params, tokenizer.vocab_size, **text)
    model = adapters.SequenceClassifier.open(tmp_path / "m", batch_size=2)
    outputs = ["red", "a red lamp because it is so", "no"]
    paths = [tuple(tokenizer.encode(f"why\n\n{output}")) for output in outputs]
    rows = twins.rows_of(paths, rows=3, length=max(map(len, paths)))
    rows = {name: jnp.asarray(value) for name, value in rows.items()}
    expected = twins.path_scores(merge(graphdef, params), rows)
    np.testing.assert_allclose(model.quality([ASK] * 3, outputs), expected, atol=1e-4)
