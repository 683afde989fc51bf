"""Language models as reward models: by the likelihood of an answer, or by the choice between two, without training.

Both read a pretrained model with PIT's own decoder: a folder of transformers, adapters of PEFT, a GGUF file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float32

from pit.config import MeshConfig
from pit.data.chat import ChatFormat
from pit.evaluate.llm_judge import TASK, asked
from pit.model.heads import row_logprobs
from pit.model.params import Params, merge
from pit.model.pretrained import Pretrained
from pit.model.sharding import make_mesh
from pit.model.token_facts import open_tokenizer
from pit.testing.errors import CheckError
from pit.testing.scorers import ROUNDING, Prompt
from pit.testing.shared import shared_rows
from pit.types import Message

Reading = Literal["likelihood", "choice"]
"""What of a language model is a score: the log-prob of an answer, or that of "A" less that of "B"."""

_CHOICE = "\n\nIf A is better, write A. If B is better, write B. Write one letter and nothing else."


class LanguageModel:
    """Log-probs of a pretrained chat model.

    Args:
        pretrained: the model.

    Raises:
        CheckError: it has no chat template.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        if pretrained.chat_template is None:
            raise CheckError(f"{pretrained.path}: has no chat template; give a chat model, or one with a template")
        self._format = ChatFormat(pretrained.chat_template, dict(pretrained.special_tokens), pretrained.eos_ids)
        self._tokenizer = open_tokenizer(pretrained.tokenizer(), str(pretrained.path))
        model = pretrained.load(make_mesh(MeshConfig(), jax.devices()[:1]))
        graphdef, self._params = model.graphdef, model.params

        def logprobs(params: Params, token: Array, position: Array, visible_until: Array, previous: Array) -> Array:
            return row_logprobs(merge(graphdef, params), token, position, visible_until, previous)

        self._logprobs = jax.jit(logprobs)

    def opening(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the tokens of a conversation up to the assistant's answer."""
        text = self._format.render(list(messages), opening=True)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def content(self, text: str) -> tuple[int, ...]:
        """Return the tokens of an answer."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def logprobs(self, paths: Sequence[tuple[int, ...]], last: Sequence[int]) -> list[Float32[np.ndarray, " n"]]:
        """Return the log-probs of the last tokens of each path, nats.

        Args:
            paths: token sequences.
            last: number of tokens of each that are wanted.
        """
        results: list[np.ndarray] = [np.zeros(0, np.float32)] * len(paths)
        for row in shared_rows(paths):
            batch = row.batch
            arrays = batch.token, batch.position, batch.visible_until, batch.previous
            logp = np.asarray(self._logprobs(self._params, *arrays))[0]
            for place, tokens in zip(row.paths, row.tokens, strict=True):
                results[place] = logp[tokens[len(tokens) - last[place] :]]
        return results


class Likelihood:
    """A quality scorer: the mean log-prob of an answer's tokens, nats per token; 0 for an answer without tokens.

    It is a mean, because the sum prefers short answers whatever they say.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model, self.rounding = model, ROUNDING

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Return the mean log-prob of each output."""
        openings = {prompt: self._model.opening(prompt) for prompt in dict.fromkeys(prompts)}
        contents = [self._model.content(output) for output in outputs]
        paths = [(*openings[prompt], *content) for prompt, content in zip(prompts, contents, strict=True)]
        logp = self._model.logprobs(paths, [len(content) for content in contents])
        return np.array([each.mean() if each.size else 0.0 for each in logp], np.float32)


class Choice:
    """A gap scorer: log p("A") - log p("B") of a model that is shown the output as A and the reference as B, nats.

    Nothing makes it antisymmetric: `order_bias` and `antisymmetry` measure how much the place counts.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model, self.rounding = model, ROUNDING
        self._letters = tuple(model.content(letter) for letter in "AB")

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Return the difference of the two log-probs."""
        openings = []
        for prompt, output, reference in zip(prompts, outputs, references, strict=True):
            material = asked(prompt, output, reference)[1].content
            content = f"{TASK}\n\n{material}{_CHOICE}"
            openings.append(self._model.opening([Message("user", content)]))
        first, second = self._letters
        paths = [(*opening, *letter) for opening in openings for letter in (first, second)]
        logp = self._model.logprobs(paths, [len(first), len(second)] * len(openings))
        sums = np.array([each.sum() for each in logp], np.float32)
        return sums[::2] - sums[1::2]


def open_language(path: str | Path, reading: Reading) -> Likelihood | Choice:
    """Load a pretrained chat model as a reward model.

    Args:
        path: whatever `pit.model.pretrained.Pretrained.open` reads.
        reading: what of it is a score.

    Raises:
        ModelFileError: a file is missing or damaged, or the decoder does not compute all of the model.
        CheckError: it has no chat template.
    """
    model = LanguageModel(Pretrained.open(path))
    return Likelihood(model) if reading == "likelihood" else Choice(model)
