"""An LLM judge behind an API in OpenAI's format as a gap scorer: its vote on each pair, as A and as B.

Unlike the judge of an evaluation (`pit.evaluate.llm_judge`) it keeps no replies, because a check asks twice to see
whether it is told the same.
"""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32

from pit.chat_client import ChatClient
from pit.evaluate.llm_judge import Chat, asked, vote_of
from pit.evaluate.llm_verdicts import KEY
from pit.testing.errors import CheckError
from pit.testing.scorers import Prompt

_MAX_TOKENS = 64


class JudgeScorer:
    """A gap scorer: 1 if the judge prefers the output, shown as A, -1 if the reference, 0 for a tie.

    Statistical invariants ask for both orders of a pair. A reply that cannot be read counts as a tie, and is counted.

    Args:
        client: client of the judging model.
        parallel: calls at a time.

    Attributes:
        unreadable: replies that could not be read.
        calls: replies so far.
    """

    def __init__(self, client: Chat, parallel: int = 4) -> None:
        self._client, self._parallel, self._lock = client, parallel, threading.Lock()
        self.calls = self.unreadable = 0

    @classmethod
    def open(cls, url: str, model: str | None) -> "JudgeScorer":
        """Return the judge of a server; its key is in the environment variable PIT_JUDGE_KEY.

        Args:
            url: base URL of the API.
            model: name of the model; None for the only one that the server has.

        Raises:
            ChatError: the URL or the key cannot be used, or the server gives no list of models.
            CheckError: the server has several models, and none is named.
        """
        key = os.environ.get(KEY)
        if model is None:
            names = ChatClient(url, "", key=key).models()
            if len(names) != 1:
                listed = ", ".join(names[:8]) or "none"
                raise CheckError(f"{url}: has {len(names)} models ({listed}); name one with --judge-model NAME")
            (model,) = names
        return cls(ChatClient(url, model, key=key))

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for a report."""
        count = f"{self.unreadable} of {self.calls} replies of the judge could not be read, and count as ties"
        return (count,) if self.unreadable else ()

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Return the vote on each pair.

        Raises:
            ChatError: the server does not answer.
        """
        with ThreadPoolExecutor(self._parallel) as pool:
            return np.array(list(pool.map(self._vote, prompts, outputs, references)), np.float32)

    def _vote(self, prompt: Prompt, output: str, reference: str) -> float:
        reply = self._client.complete(asked(prompt, output, reference), temperature=0, max_tokens=_MAX_TOKENS)
        vote = vote_of(reply.text)
        with self._lock:
            self.calls += 1
            self.unreadable += vote is None
        return float(vote or 0)
