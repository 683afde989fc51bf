"""An LLM judge as a scorer: its votes, both orders, replies that cannot be read, and servers that do not answer."""

import json

import pytest

from pit.chat_client import ChatClient, ChatError, Completion
from pit.testing.errors import CheckError
from pit.testing.invariants import ALL
from pit.testing.judge import JudgeScorer
from pit.testing.questions import Question
from pit.testing.run import Request, check_statistical, run_check, select
from pit.types import Message

BY_NAME = {invariant.name: invariant for invariant in ALL}
ASK = (Message("user", "Why?"),)
ROWS = [Question((Message("user", f"Why {i}?"),), ("long answer",), ("short",)) for i in range(4)]


class Client:
    """A chat server whose vote is a function of A and B."""

    def __init__(self, vote):
        self.vote, self.asked = vote, []

    def complete(self, messages, **parameters):
        self.asked.append((messages, parameters))
        content = json.loads(messages[-1].content)
        return Completion(self.vote(content["A"], content["B"]), 1, 1)


def longer(a, b):
    return json.dumps({"better": "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"})


def test_a_vote_is_for_the_output_which_is_shown_as_a():
    client = Client(longer)
    votes = JudgeScorer(client).gap([ASK] * 3, ["long answer", "no", "same"], ["short", "maybe", "size"])
    assert votes.tolist() == [1.0, -1.0, 0.0]
    shown = [json.loads(messages[-1].content) for messages, _ in client.asked]
    assert {(each["A"], each["B"]) for each in shown} == {("long answer", "short"), ("no", "maybe"), ("same", "size")}
    assert shown[0]["request"] == [{"role": "user", "content": "Why?"}]
    assert client.asked[0][1] == {"temperature": 0, "max_tokens": 64}


def test_replies_that_cannot_be_read_are_ties_and_are_counted():
    scorer = JudgeScorer(Client(lambda a, b: "I prefer A" if a == "x" else "A"))
    assert scorer.notes == ()
    assert scorer.gap([ASK] * 2, ["x", "y"], ["z", "z"]).tolist() == [0.0, 1.0]
    assert scorer.notes == ("1 of 2 replies of the judge could not be read, and count as ties",)


def test_a_judge_that_prefers_a_place_is_seen_in_both_orders():
    for vote, bias, accuracy in ((longer, 0.0, 1.0), (lambda a, b: "tie" if a == b else "A", 1.0, 0.5)):
        scorer = JudgeScorer(Client(vote))
        measured = {
            name: check_statistical(BY_NAME[name], scorer, ROWS, Request("m", "d")).interval.value
            for name in ("order_bias", "accuracy")
        }
        assert measured == {"order_bias": bias, "accuracy": accuracy}


def test_a_check_of_a_judge_has_its_notes():
    scorer = JudgeScorer(Client(lambda a, b: "no idea"))
    report = run_check(scorer, ROWS, Request("judge", "d", examples=2), invariants=select(["batch_size", "accuracy"]))
    assert [result.status for result in report.results] == ["held", "measured"]
    assert report.notes[0].endswith("replies of the judge could not be read, and count as ties")


def test_a_server_that_does_not_answer_ends_the_check():
    """It says nothing about the judge."""

    class Silent:
        def complete(self, messages, **parameters):
            raise ChatError("http://127.0.0.1: the connection is refused; check that the server runs there")

    with pytest.raises(ChatError, match="connection is refused"):
        run_check(JudgeScorer(Silent()), ROWS, Request("judge", "d"), invariants=select(["accuracy"]))


@pytest.mark.parametrize(("names", "pattern"), [([], r"has 0 models \(none\)"), (["a", "b"], r"has 2 models \(a, b\)")])
def test_a_model_must_be_named_where_there_are_several(monkeypatch, names, pattern):
    monkeypatch.setattr(ChatClient, "models", lambda self: names)
    with pytest.raises(CheckError, match=rf"^http://127.0.0.1:9/v1: {pattern}; name one with --judge-model NAME$"):
        JudgeScorer.open("http://127.0.0.1:9/v1", None)


def test_the_only_model_of_a_server_is_taken(monkeypatch):
    monkeypatch.setattr(ChatClient, "models", lambda self: ["only"])
    assert JudgeScorer.open("http://127.0.0.1:9/v1", None)._client.model == "only"
    assert JudgeScorer.open("http://127.0.0.1:9/v1", "other")._client.model == "other"
