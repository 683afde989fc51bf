"""Rewards that are functions of the user: found, stamped, given texts, held to their rule; weighted sums."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pit.config import RewardMix
from pit.data.packing import Layout
from pit.data.template import RoleTemplate
from pit.data.tokenizer import Tokenizer
from pit.data.tokens import Tokens
from pit.rl import function as functions
from pit.rl.function import FunctionError, FunctionReward, RewardError, digest_of, keep_source, load, source_of
from pit.rl.records import Answers, Rows
from pit.rl.reward import Sum, mixed
from pit.types import Message

TEMPLATE = RoleTemplate(Tokenizer.train_bpe(["why hot cold red"] * 9, 300), (40, 40, 40))
LAYOUT = Layout(closings=TEMPLATE.closings, pad=TEMPLATE.pad, row_length=128, rows=1, trees=2)
PROMPTS = ["why red?", "why hot?\x1b[2J"]
ANSWERS = [["a", "bb"], ["ccc", "dddd"]]


class Held(NamedTuple):
    """The half of a fold that a function's rows come from."""

    name: str = "rl"

    def facts(self, ids):
        return [{"solution": str(10 * i)} for i in ids]


def column(texts):
    return Tokens.of([TEMPLATE.encode_answer(text) for text in texts])


def inputs(prompts=PROMPTS):
    return Tokens.of([TEMPLATE.encode_prompt([Message("user", text)]) for text in prompts])


def outputs():
    return [column([answers[n] for answers in ANSWERS]) for n in range(2)]


def scores_of(function, references=None, rows=None):
    return FunctionReward("my:f", function, TEMPLATE)(Answers(inputs(), references, outputs(), None, rows))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def test_the_texts_of_all_samples_come_prompt_by_prompt_and_the_scores_go_back_to_them():
    calls = []

    def score(prompts, references, answers, rows):
        calls.append((prompts, references, answers, rows))
        return [len(answer) + 10 * prompts.index(prompt) for prompt, answer in zip(prompts, answers, strict=True)]

    rows = Rows(Held(), np.array([7, 3]))
    values = scores_of(score, column(["x", "y"]), rows)
    ((prompts, references, answers, facts),) = calls
    assert prompts == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    assert references == ["x", "x", "y", "y"]
    assert answers == ["a", "bb", "ccc", "dddd"]
    assert [(fact["fold"], fact["row"], fact["solution"]) for fact in facts] == [
        ("rl", 7, "70"),
        ("rl", 7, "70"),
        ("rl", 3, "30"),
        ("rl", 3, "30"),
    ]
    assert facts[0]["messages"] == [{"role": "user", "content": PROMPTS[0]}]
    np.testing.assert_array_equal(values, np.array([[1, 2], [23, 24]], np.float32))
    assert values.dtype == np.float32


def test_without_references_a_function_gets_none_and_without_rows_the_messages_alone():
    def score(prompts, references, answers, rows):
        assert references is None
        assert all(row.keys() == {"messages"} for row in rows)
        return np.arange(4)

    np.testing.assert_array_equal(scores_of(score), np.arange(4, dtype=np.float32).reshape(2, 2))


def test_a_function_may_be_a_coroutine_and_may_change_its_lists():
    async def score(prompts, references, answers, rows):
        await asyncio.sleep(0)
        prompts.clear()
        answers.clear()
        return [True, 2, 0.5, np.float64(3)]

    np.testing.assert_array_equal(scores_of(score), np.array([[1, 2], [0.5, 3]], np.float32))


def test_a_conversation_is_one_text_with_its_roles():
    turns = [Message("user", "why"), Message("assistant", "hot"), Message("user", "red")]
    seen = []
    reward = FunctionReward("my:f", lambda prompts, *_: seen.extend(prompts) or [0.0], TEMPLATE)
    reward(Answers(Tokens.of([TEMPLATE.encode_prompt(turns)]), None, [column(["a"])]))
    assert seen == ["user: why\n\nassistant: hot\n\nuser: red"]


NAMED = r"^reward\.function = 'my:f': "
REMEDY = (
    "; mend its cause, and the same command resumes; if its file has to change, delete the stage's folder to train the "
    "stage again"
)
FIRST = rf"the first prompt is \"why red\?\"{re.escape(REMEDY)}$"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, 2.0, float("nan"), 4.0], 'finite in float32, and returned nan for the answer "ccc" to the prompt '),
        ([1.0, -float("inf"), 3.0, 4.0], 'finite in float32, and returned -inf for the answer "bb" to the prompt '),
        ([1.0, 2.0, 3.0, 1e39], 'finite in float32, and returned 1e\\+39 for the answer "dddd" to the prompt '),
        ([1.0], f"and returned 1; {FIRST}"),
        ([1.0, 2.0, None, 4.0], f"and returned a list with NoneType in it; {FIRST}"),
        ([1.0, [2.0], 3.0, 4.0], f"and returned a list with list in it; {FIRST}"),
        (np.zeros((2, 2)), rf"and returned ndarray of shape \(2, 2\); {FIRST}"),
        (None, f"and returned NoneType; {FIRST}"),
        ({"a": 1}, f"and returned dict; {FIRST}"),
        (["1"] * 4, f"and returned a list with str in it; {FIRST}"),
        (3.0, f"and returned float; {FIRST}"),
    ],
)
def test_anything_but_a_finite_number_per_answer_is_one_error_with_its_prompt(values, words):
    rule = "must return a list of 4 numbers, one per answer,? ?"
    with pytest.raises(RewardError, match=NAMED + rule) as caught:
        scores_of(lambda *_: values)
    with pytest.raises(RewardError, match=words):
        scores_of(lambda *_: values)
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_prompt_of_a_bad_score_is_shown_with_escapes():
    with pytest.raises(RewardError) as caught:
        scores_of(lambda *_: [0, 0, np.nan, 0])
    assert str(caught.value).endswith(f'to the prompt "why hot?\\u001b[2J"{REMEDY}')


def test_a_function_that_raises_is_named_with_its_line_and_a_prompt(here):
    (here / "bad.py").write_text("def score(prompts, references, answers, rows):\n    return prompts[99]\n")
    with pytest.raises(RewardError) as caught:
        FunctionReward("bad:score", load("bad:score"), TEMPLATE)(Answers(inputs(), None, outputs()))
    assert str(caught.value) == (
        "reward.function = 'bad:score': it raised IndexError at bad.py:2 (\"list index out of range\"), given 4 "
        f'answers, the first to the prompt "why red?"{REMEDY}'
    )


def test_any_callable_may_be_a_reward_and_raise():
    class Failing:
        def __call__(self, *_):
            raise OSError("gone")

    with pytest.raises(RewardError, match=r"it raised OSError \(\"gone\"\), given 4 answers, the first to the prompt"):
        scores_of(Failing())


def test_a_module_of_the_working_directory_comes_first(here):
    (here / "pkg").mkdir()
    (here / "pkg" / "__init__.py").write_text("raise RuntimeError('not run to find a source')\n")
    (here / "pkg" / "inner.py").write_text("def f(*_): return 1\n")
    assert source_of("pkg.inner:f") == here / "pkg" / "inner.py"
    (here / "yaml.py").write_text("def f(*_): return 2\n")
    assert source_of("yaml:f") == here / "yaml.py"
    with pytest.raises(FunctionError, match=r"already has a module 'yaml' \(.*\); rename yaml.py, or give its file: "):
        load("yaml:f")
    assert load("yaml.py:f")() == 2
    (here / "mine.py").write_text("import helper\ndef f(*_): return helper.VALUE\n")
    (here / "helper.py").write_text("VALUE = 3\n")
    assert load("mine:f")() == 3


def test_a_file_is_read_from_any_folder_with_its_neighbours(here, tmp_path_factory, monkeypatch):
    (here / "mine.py").write_text("import neighbour\ndef f(*_): return neighbour.VALUE\n")
    (here / "neighbour.py").write_text("VALUE = 5\n")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load(f"{here / 'mine.py'}:f")() == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py:f", r"there is no file absent.py; correct its path$"),
        ("absent:f", r"there is no module 'absent' in .* run the command in its folder, or give its file"),
        ("absent.inner:f", r"there is no module 'absent.inner' in "),
        ("math:sqrt", r"there is no Python file of module 'math' in "),
        ("broken:f", r"cannot be imported, it raised SyntaxError .*; correct it$"),
        ("raises:f", r"cannot be imported, it raised RuntimeError at raises.py:1 \(\"no\"\); correct it$"),
        ("good:g", r"g does not exist in .*good.py; name a function of that file$"),
        ("good:VALUE", r"VALUE is not a function in .*good.py; name a function of that file$"),
    ],
)
def test_a_function_that_cannot_be_found_is_one_clear_error(here, name, words):
    (here / "broken.py").write_text("def f(:\n")
    (here / "raises.py").write_text("raise RuntimeError('no')\n")
    (here / "good.py").write_text("VALUE = 1\ndef f(*_): return 1\n")
    with pytest.raises(FunctionError, match=rf"^reward\.function = '{name}': {words}"):
        load(name)


def test_the_digest_is_of_the_file_and_a_kept_copy_stands_in_for_it(here):
    kept = here / "stage" / "reward.py"
    kept.parent.mkdir()
    source = here / "mine.py"
    source.write_text("def f(*_): return 1\n")
    first = digest_of("mine:f", kept)
    for trained in (False, True):
        keep_source("mine:f", kept, "rl-policy", trained)
    source.write_text("def f(*_): return 2\n")
    assert digest_of("mine:f", kept) != first
    with pytest.raises(FunctionError) as caught:
        keep_source("mine:f", kept, "rl-policy", True)
    assert str(caught.value) == (
        f"reward.function = 'mine:f': {source} has changed since rl-policy was trained with it ({kept} is its text of "
        f"then); put that text back, or delete {kept.parent} to train the stage again"
    )
    source.unlink()
    source.with_name("other.py").write_text("def f(*_): return 3\n")
    assert digest_of("mine:f", kept) == first
    keep_source("other:f", kept, "rl-policy", False)
    assert digest_of("mine:f", kept) == digest_of("other:f", kept) != first, "nothing was trained with the other text"
    kept.unlink()
    with pytest.raises(FunctionError, match="there is no module 'mine'"):
        digest_of("mine:f", kept)


class Fixed(NamedTuple):
    """A reward of given scores."""

    scores: np.ndarray

    def __call__(self, answers):
        return self.scores


ARRAY = hnp.arrays(np.float32, (3, 4), elements=st.integers(-5, 5).map(float))


@given(ARRAY, ARRAY, st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_a_sum_is_the_weighted_sum_of_its_parts(model, function, a, b):
    total = Sum({"model": (a, Fixed(model)), "function": (b, Fixed(function))})
    answers = Answers(inputs(), None, outputs())
    parts = total.of_parts(answers)
    np.testing.assert_allclose(total(answers), a * model + b * function, rtol=1e-5, atol=1e-5)
    values = total.metrics(parts)
    assert values["rewards/model"] == pytest.approx(model.mean(), abs=1e-5)
    assert values["rewards/function_std"] == pytest.approx(function.std(axis=1).mean(), abs=1e-5)
    alike = [
        (1 + np.sign(m[i] - m[j]) * np.sign(f[i] - f[j])) / 2
        for m, f in zip(model, function, strict=True)
        for i in range(4)
        for j in range(i)
        if f[i] != f[j]
    ]
    if alike:
        assert values["rewards/agreement"] == pytest.approx(np.mean(alike))
    else:
        assert "rewards/agreement" not in values


def test_a_function_alone_needs_no_model(here):
    (here / "mine.py").write_text("def f(prompts, references, answers, rows): return [len(a) for a in answers]\n")
    config = RewardMix("mine:f", model_weight=0.0, function_weight=-2.0)
    reward = mixed(config, TEMPLATE, LAYOUT, None, None)
    np.testing.assert_array_equal(
        reward(Answers(inputs(), None, outputs())), np.array([[-2, -4], [-6, -8]], np.float32)
    )


def test_long_texts_are_cut_in_messages():
    text = functions._shown("x" * 1000)
    assert json.loads(text) == "x" * 300 + "..."


def test_the_example_of_the_guide_works(here):
    page = Path(__file__).parents[2] / "docs" / "guides" / "your-own-reward.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    (here / "rewards.py").write_text(code)
    reward = FunctionReward("rewards.py:score", load("rewards.py:score"), TEMPLATE)
    solved = [column([text, "8"]) for text in ("it is 70", "no idea")]
    rows = Rows(Held(), np.array([7, 3]))
    np.testing.assert_array_equal(
        reward(Answers(inputs(), None, solved, None, rows)), np.array([[1, 0], [0, 0]], np.float32)
    )


def test_a_function_that_exits_is_an_error_with_a_prompt():
    def leaves(prompts, references, answers, rows):
        sys.exit(0)

    with pytest.raises(RewardError, match=r"it raised SystemExit.*the first to the prompt"):
        FunctionReward("f.py:leaves", leaves, TEMPLATE)(Answers(inputs(), None, outputs()))


def test_a_file_that_exits_on_import_is_an_error(here):
    (here / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(FunctionError, match=r"cannot be imported, it raised SystemExit at leaves.py:2"):
        load("leaves.py:score")
