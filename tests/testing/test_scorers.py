"""Scorers and adapters: the methods that they have, their results, and the errors of bad ones."""

import importlib.util
import re
from types import SimpleNamespace

import cases
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.model.heads import RewardModel
from pit.model.params import build, merge
from pit.model.pretrained import save_pretrained
from pit.testing import adapters
from pit.testing.errors import CheckError, DtypeError, NonFiniteError, ScorerCrashError, ShapeError
from pit.testing.scorers import HALF_ROUNDING, ROUNDING, Item, Method, gaps, methods_of, prompt_text
from pit.types import Message

ASK = (Message("user", "why"),)
ITEMS = (Item(ASK, "because", "no"), Item(ASK, "no", "because it is so"))


def lengths(prompts, outputs, references):
    return np.array([len(y) - len(r) for y, r in zip(outputs, references, strict=True)], np.float32)


def quality(prompts, outputs):
    return np.array([len(x) + 10 * len(y) for x, y in zip(prompts, outputs, strict=True)], np.float32)


def test_a_function_of_three_is_a_gap_scorer():
    scorer = adapters.as_scorer(lengths, "lengths")
    assert methods_of(scorer) == {Method.GAP}
    assert gaps(scorer, ITEMS).tolist() == [5.0, -14.0]


def test_a_function_of_two_is_a_difference_with_a_zero():
    scorer = adapters.as_scorer(quality, "quality")
    assert methods_of(scorer) == {Method.GAP, Method.CENTRED}
    assert gaps(scorer, ITEMS).tolist() == [50.0, -140.0]
    assert gaps(scorer, [Item(ASK, "no", "no")], Method.CENTRED).tolist() == [0.0]


def test_an_object_with_quality_is_wrapped_and_a_scorer_is_kept():
    model = SimpleNamespace(quality=quality, rounding=0.5)
    scorer = adapters.as_scorer(model, "model")
    assert scorer.rounding == 0.5
    assert adapters.as_scorer(scorer, "again") is scorer


@pytest.mark.parametrize(("value", "name"), [(3, "int"), (dict, "type"), (lambda prompts: 0, "function")])
def test_other_objects_are_refused(value, name):
    with pytest.raises(CheckError, match=rf"^mine: is of type {name}, must be a scorer .*prompts, outputs"):
        adapters.as_scorer(value, "mine")


@pytest.mark.parametrize(
    ("result", "fault", "message"),
    [
        (
            np.zeros((2, 1), np.float32),
            ShapeError,
            "gap() has shape (2, 1), must have shape (2,)",
        ),
        (np.zeros(3, np.float32), ShapeError, "gap() has shape (3,), must have shape (2,)"),
        (np.zeros(2, np.int64), DtypeError, "gap() has dtype int64, must be float32"),
        (np.zeros(2), DtypeError, "gap() has dtype float64, must be float32"),
        (np.array([0, np.nan], np.float32), NonFiniteError, "gap()[1] is nan, must be finite (1 of 2"),
        (np.array([np.inf, np.nan], np.float32), NonFiniteError, "gap()[0] is inf, must be finite (2 of 2"),
    ],
)
def test_bad_results_have_different_errors(result, fault, message):
    with pytest.raises(fault, match=f"^{re.escape(message)}"):
        gaps(adapters.GapFunction(lambda *_: result), ITEMS)


def test_a_scorer_that_raises_is_named():
    def fails(prompts, outputs, references):
        raise KeyError("word")

    with pytest.raises(ScorerCrashError, match=r"^gap\(\) raised KeyError: 'word'"):
        gaps(adapters.GapFunction(fails), ITEMS)


def test_a_quality_of_another_shape_is_named():
    scorer = adapters.Difference(adapters.QualityFunction(lambda prompts, outputs: np.zeros(3, np.float32)))
    with pytest.raises(ShapeError, match=r"^quality\(\) has shape \(3,\), must have shape \(4,\)"):
        gaps(scorer, ITEMS)


def test_conversations_as_text():
    assert prompt_text(ASK) == "why"
    assert prompt_text((Message("system", "be brief"), *ASK)) == "system: be brief\n\nuser: why"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:gap", "No module named 'no_such_module'"),
        ("math:gap", "module 'math' has no attribute 'gap'"),
    ],
)
def test_a_failed_import_gives_the_reason(name, reason):
    with pytest.raises(CheckError, match=rf"^{name}: cannot be imported \({reason}\); give MODULE:NAME"):
        adapters.import_scorer(name)


class Tensor:
    """The methods of a torch tensor that the adapter uses."""

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
    """Sums the letters up to the last letter, or up to the index that is their count, less one."""

    dtype = "torch.float32"

    def __init__(self, reads):
        self.reads = reads

    def __call__(self, input_ids, attention_mask):
        width = input_ids.shape[1]
        # The rule of many decoders in transformers: the number of tokens that are not padding, less one.
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
def test_left_padding_shows_in_the_scores_of_a_classifier(side, reads, right):
    model = adapters.SequenceClassifier(FakeClassifier(reads), FakeTokenizer(side), batch_size=2)
    texts = ["a", "a much longer answer", "b"]
    scores = model.quality([ASK] * 3, texts)
    expected = [sum(map(ord, f"why\n\n{text}")) / 1000 for text in texts]
    assert np.allclose(scores, expected, rtol=1e-6) is right


def test_a_chat_template_is_used_where_there_is_one():
    tokenizer = FakeTokenizer("right")
    tokenizer.chat_template = "template"
    tokenizer.apply_chat_template = lambda messages, tokenize: "/".join(m["content"] for m in messages)
    model = adapters.SequenceClassifier(FakeClassifier("last_token"), tokenizer)
    assert model.quality([ASK], ["x"])[0] == pytest.approx(sum(map(ord, "why/x")) / 1000)
    assert model.quality([], []).shape == (0,)


@pytest.mark.parametrize(("dtype", "rounding"), [("torch.bfloat16", HALF_ROUNDING), ("torch.float32", ROUNDING)])
def test_half_precision_has_a_larger_rounding(dtype, rounding):
    model = FakeClassifier("last_token")
    model.dtype = dtype
    assert adapters.Difference(adapters.SequenceClassifier(model, FakeTokenizer("right"))).rounding == rounding


HAVE_TRANSFORMERS = all(map(importlib.util.find_spec, ("torch", "transformers")))


@pytest.mark.skipif(HAVE_TRANSFORMERS, reason="torch and transformers are installed")
def test_without_transformers_the_error_names_the_packages(tmp_path):
    with pytest.raises(CheckError, match=r"^\w+: is not installed.*pip install torch transformers"):
        adapters.SequenceClassifier.open(tmp_path)


@pytest.mark.skipif(not HAVE_TRANSFORMERS, reason="needs torch and transformers")
@pytest.mark.filterwarnings("default")
def test_a_real_classifier_scores_what_was_saved(tmp_path):
    """The adapter on a reward model in transformers' format gives the scores of its separate paths."""
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
