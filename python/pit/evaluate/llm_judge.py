"""An LLM judge behind an API in OpenAI's format: pairwise comparisons in both orders, for evaluation alone.

The idea is the GPT-4 evaluation of the paper (section 4.1). A judge that prefers a position contradicts itself when the
answers change places, so a comparison counts only where both orders agree. Whatever cannot be read, or does not come,
is counted and is no verdict. No reward takes a judge: it has no `__call__`, and `pit.rl` does not import this module.
"""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from pit.atomic import write_file
from pit.chat_client import ChatError, Completion
from pit.config import JudgeConfig
from pit.types import Message

PROMPT = resources.files("pit.evaluate").joinpath("judge_prompt.txt").read_text(encoding="utf-8")
"""The judge's instructions, its system message."""

GIVE_UP = 8
"""Calls in a row that fail until the server is asked no more."""

_VOTES: Mapping[str, int] = {"A": 1, "B": -1, "tie": 0}


@runtime_checkable
class Chat(Protocol):
    """A client of one model, such as `pit.chat_client.ChatClient`."""

    def complete(self, messages: Sequence[Message], **parameters: object) -> Completion:
        """Return the model's answer; raise a `ChatError` where there is none."""


class Pair(NamedTuple):
    """A conversation up to its answer, and two answers to it."""

    messages: tuple[Message, ...]
    candidate: str
    baseline: str


class Verdict(NamedTuple):
    """Result of a comparison: 1 for the candidate, -1 for the baseline, 0 for a tie.

    consistent: whether both orders gave the same; where they did not, the verdict is a tie.
    """

    value: int
    consistent: bool


@dataclass
class Cost:
    """Cost of a judge so far.

    calls: replies that a server gave. cached: replies that were there from before. unreadable: replies that were none
    of those asked for. failed: replies that did not come.
    prompt_tokens, completion_tokens: tokens of all replies, those from before too, as the server counts them.
    """

    calls: int = 0
    cached: int = 0
    unreadable: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def vote_of(text: str) -> int | None:
    """Return the vote of a reply, 1 for A, -1 for B, 0 for a tie; None where it is not what was asked for.

    >>> [vote_of(text) for text in ('{"better": "A"}', " B", "tie", "A is better", '{"better": "A", "why": ""}', "[]")]
    [1, -1, 0, None, None, None]
    """
    text = text.strip()
    if text in _VOTES:
        return _VOTES[text]
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        return None
    better = reply.get("better") if isinstance(reply, dict) and len(reply) == 1 else None
    return _VOTES.get(better) if isinstance(better, str) else None


TASK = PROMPT.rpartition("\n\n")[0]
"""What a judge is told without its last paragraph, the form of the reply."""


def asked(messages: Sequence[Message], a: str, b: str) -> list[Message]:
    """Return what a judge is asked about two answers, A and B, to a conversation: a system and a user message."""
    content = {"request": [message._asdict() for message in messages], "A": a, "B": b}
    return [Message("system", PROMPT), Message("user", json.dumps(content, ensure_ascii=False))]


class LlmJudge:
    """A judge that keeps its replies in a folder, by their content, so that none is paid for twice.

    Args:
        config: section of the judge.
        client: client of its model.
        folder: place of the replies; damaged ones are asked for again.

    Attributes:
        cost: what it has cost so far.
        trouble: the last error of the server, None without one.
    """

    def __init__(self, config: JudgeConfig, client: Chat, folder: Path) -> None:
        self.config, self.cost = config, Cost()
        self._client, self._folder = client, folder
        self._lock, self._failures = threading.Lock(), 0
        self.trouble: str | None = None

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        """Return the verdict of each pair, None where there is none; several calls run at a time.

        Equal answers are a tie, about which nobody is asked.
        """
        with ThreadPoolExecutor(self.config.parallel) as pool:
            return list(pool.map(self._verdict, pairs))

    def _verdict(self, pair: Pair) -> Verdict | None:
        if pair.candidate == pair.baseline:
            return Verdict(0, True)
        first = self._vote(pair.messages, pair.candidate, pair.baseline)
        if first is None:
            return None
        swapped = self._vote(pair.messages, pair.baseline, pair.candidate)
        if swapped is None:
            return None
        return Verdict(first if first == -swapped else 0, first == -swapped)

    def _vote(self, messages: Sequence[Message], a: str, b: str) -> int | None:
        """Return the judge's vote, 1 for A; None where no reply can be read."""
        question = asked(messages, a, b)
        parameters = {"temperature": 0, "max_tokens": self.config.max_tokens}
        path = self._folder / f"{self._key(question, parameters)}.json"
        if (kept := _read(path)) is not None:
            self._count(kept, cached=1)
            return vote_of(kept.text)
        for _ in range(self.config.attempts):
            reply = self._reply(question, parameters)
            if reply is None:
                return None
            vote = vote_of(reply.text)
            self._count(reply, calls=1, unreadable=int(vote is None))
            if vote is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_file(path, (json.dumps(vars(reply)) + "\n").encode())
                return vote
        return None

    def _reply(self, asked: Sequence[Message], parameters: Mapping[str, object]) -> Completion | None:
        if self._failures >= GIVE_UP:
            self._count(None, failed=1)
            return None
        try:
            reply = self._client.complete(asked, **parameters)
        except ChatError as error:
            self._count(None, failed=1)
            with self._lock:
                self._failures, self.trouble = self._failures + 1, str(error)
            return None
        with self._lock:
            self._failures = 0
        return reply

    def _count(self, reply: Completion | None, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                setattr(self.cost, name, getattr(self.cost, name) + count)
            if reply is not None:
                self.cost.prompt_tokens += reply.prompt_tokens
                self.cost.completion_tokens += reply.completion_tokens

    def _key(self, asked: Sequence[Message], parameters: Mapping[str, object]) -> str:
        """Return the name of a reply: a digest of all that decides it."""
        content = [self.config.url, self.config.model, [list(message) for message in asked], dict(parameters)]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _read(path: Path) -> Completion | None:
    """Return a reply that was kept and can be read, None otherwise."""
    try:
        fields = json.loads(path.read_bytes())
        reply = Completion(fields["text"], fields["prompt_tokens"], fields["completion_tokens"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    known = isinstance(reply.text, str) and type(reply.prompt_tokens) is type(reply.completion_tokens) is int
    return reply if known and vote_of(reply.text) is not None else None


def outcomes_of(verdicts: Sequence[Verdict | None]) -> Float64[np.ndarray, " m"]:
    """Return the values of the verdicts that there are.

    >>> outcomes_of([Verdict(1, True), None, Verdict(0, False)])
    array([1., 0.])
    """
    return np.array([verdict.value for verdict in verdicts if verdict is not None], np.float64)
