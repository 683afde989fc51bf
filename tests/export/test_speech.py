"""Tokens of exported models: other programs give the model those of its training, and read scores where PIT does."""

import pytest
from small_model import cases

from pit.data.chat import ChatFormat
from pit.export.speech import speech_of
from pit.types import Message


@pytest.mark.parametrize("name", ["chatml", "zephyr", "llama3"])
def test_a_reward_model_is_padded_by_no_end_of_an_answer(name):
    """Where the tokenizer pads with its EOS too, and where it names no padding."""
    template = cases.chat_template(name)
    speech = speech_of(template, "Again.", reward=True)
    assert speech.pad_id not in (*speech.eos_ids, template.closings.eos)
    assert template.tokenizer.added[speech.pad_id] == speech.special_tokens["pad_token"]


@pytest.mark.parametrize("scored", [False, True])
def test_a_template_that_tells_the_day_tells_that_of_the_run(scored):
    """Whoever renders the exported template, on whatever day, gives the model the tokens of its training."""
    template = cases.chat_template("llama3")
    speech = speech_of(template, "Again.", reward=scored)
    turns = [Message("user", "red?"), Message("assistant", "no")]
    later = ChatFormat(speech.chat_template, dict(speech.special_tokens), date="2031-01-02")
    text = template.format.render(turns, opening=False)
    assert "Today Date: 26 Jul 2024" in text
    assert later.render(turns, opening=False) == text
