"""The testing kit in a chat format: a text's score is that of the conversation as the format renders it."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.data.template import gap, improver_sft, policy_sft
from pit.model.heads import RewardModel
from pit.model.params import build, merge
from pit.testing.checkpoint import CheckpointScorer, row_format
from pit.testing.paths import live, loss_paths, packed_path, separate_rows, tip_paths
from pit.testing.policy import draw_format
from pit.testing.strategies import forests
from pit.types import Closings, Message

sys.path.append(str(Path(__file__).parents[1] / "data"))
import chat_cases as cases

WINDOWS = (12, 10, 10)
LONG = Closings(input=(1, 2), reviewed=(3,), reference=(1, 2, 3), eos=2)
CHATS = ("chatml", "qwen3")


def template(name):
    return cases.chat_template(name, WINDOWS)


@pytest.mark.parametrize("kind", ["gap", "quality"])
@pytest.mark.parametrize("name", CHATS)
def test_a_row_format_holds_the_longest_path_of_the_template(name, kind):
    form = row_format(template(name), kind)
    assert form.path == max(template(name).path(referenced=referenced) for referenced in (False, True))
    assert form.narrow.row_length == form.path
    text = [("user", "red lamp")]
    x = template(name).encode_prompt([Message("user", "red lamp")])
    y, ref = (template(name).encode_answer(word) for word in ("small", "cheap"))
    said = [("assistant", "cheap"), ("user", cases.REQUEST)] if kind == "gap" else []
    whole = cases.rendered(name, *text, *said, ("assistant", "small"))
    path = form.item_path(x, y, ref)
    assert path == tuple(whole[: len(path)])
    low, high = form.content
    assert not set(range(low, high + 1)) & template(name).special_ids


def test_a_draw_format_has_the_closings_of_the_policy():
    form = draw_format(template("qwen3"))
    close = template("qwen3").closings
    assert (form.closing, form.eos, form.capacity) == (close.input, close.eos, WINDOWS[2])
    assert form.longest == template("qwen3").longest[0]


@pytest.mark.parametrize("kind", ["gap", "quality"])
@pytest.mark.parametrize("name", CHATS)
def test_a_text_scores_as_the_conversation_alone_in_a_row(name, kind):
    graphdef, params = build(RewardModel, twins.LLAMA, cases.tokenizer(name).vocab_size, 0)
    scorer = CheckpointScorer(graphdef, params, template(name), kind)
    prompts = [(Message("user", text),) for text in ("red lamp", "small")]
    outputs, references = ["cheap", "red"], ["two.", "red"]
    paths = []
    for (message,), output, reference in zip(prompts, outputs, references, strict=True):
        turns = [("user", message.content)]
        for said in (output, reference) if kind == "quality" else (output,):
            before = turns if kind == "quality" else [*turns, ("assistant", reference), ("user", cases.REQUEST)]
            whole, eos = cases.rendered(name, *before, ("assistant", said)), template(name).closings.eos
            paths.append(tuple(whole[: len(whole) - whole[::-1].index(eos)]))
    batch = separate_rows(paths, len(paths), max(map(len, paths)))
    rows = {each: jnp.asarray(getattr(batch, each)) for each in ("token", "position", "visible_until", "leaf")}
    scores = twins.jit(lambda params, rows: merge(graphdef, params)(**rows))
    alone = np.asarray(jax.device_get(scores(params, rows)))[:, 0]
    expected = alone if kind == "gap" else alone[::2] - alone[1::2]
    np.testing.assert_allclose(scorer.gap(prompts, outputs, references), expected, atol=1e-5)


@given(data=st.data())
def test_paths_of_long_closings_are_those_of_packed_rows(data):
    topology = data.draw(st.sampled_from([policy_sft(), improver_sft(), gap()]))
    forest = data.draw(forests(topology, (4, 23), 6))
    layout = twins.Layout(LONG, 0, row_length=24, rows=8, trees=4)
    batches = forest.pack(layout)
    packed = {packed_path(batch, *place) for batch in batches for place in live(batch)}
    tips = {path for i in range(forest.trees) for path in tip_paths(topology, forest.columns, i, LONG)}
    assert tips <= packed
    learned = [
        packed_path(batch, *map(int, place)) for batch in batches for place in np.argwhere(batch.loss_weight > 0)
    ]
    assert sorted(learned) == sorted(loss_paths(topology, forest.columns, LONG).elements())
