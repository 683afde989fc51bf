"""Scorers made of other things: a function, an ordinary reward model, a transformers sequence classifier."""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from pit.testing.faults import CheckError, WrongShape
from pit.testing.scorers import HALF_ROUNDING, ROUNDING, Prompt, levels_of, rounding_of, text_of


@dataclass(frozen=True)
class GapFunction:
    """A gap scorer of any function of (prompts, outputs, references), lists of text, to a float32 vector."""

    function: Callable[[list[str], list[str], list[str]], Any]
    rounding: float = ROUNDING

    def gap(self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]) -> Any:
        """What the function says, which is checked by whoever asks."""
        return self.function([text_of(p) for p in prompts], list(outputs), list(references))


@runtime_checkable
class QualityScorer(Protocol):
    """An ordinary reward model: f32[n] of n prompts and outputs."""

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Score of each output."""


@dataclass(frozen=True)
class QualityFunction:
    """A quality scorer of any function of (prompts, outputs), lists of text, to a float32 vector."""

    function: Callable[[list[str], list[str]], Any]
    rounding: float = ROUNDING

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Any:
        """What the function says, which is checked by whoever asks."""
        return self.function([text_of(p) for p in prompts], list(outputs))


class Difference:
    """An ordinary reward model as a gap scorer: r(x, y) - r(x, y_ref), which has a zero of its own."""

    def __init__(self, model: QualityScorer) -> None:
        self.model, self.rounding = model, rounding_of(model)

    def gap(self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Difference of two scores, asked for in one call, in the type that they have."""
        n = len(outputs)
        both = np.asarray(self.model.quality([*prompts, *prompts], [*outputs, *references]))
        if both.shape != (2 * n,):
            raise WrongShape(f"quality() has shape {both.shape}, not {(2 * n,)}; return one score for each output")
        difference: np.ndarray = both[:n] - both[n:]
        return difference

    centred = gap


class SequenceClassifier:
    """A transformers `AutoModelForSequenceClassification` with one label, as people use it.

    Texts are padded to the longest of a batch on the side that the tokenizer pads on. A decoder is read at its last
    token that is not `config.pad_token_id`, which is where left padding and a missing pad token go wrong.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 8,
        max_length: int = 2048,
        inference: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._model, self._tokenizer, self._inference = model, tokenizer, inference
        self._batch_size, self._max_length = batch_size, max_length
        half = str(getattr(model, "dtype", "float32")).rpartition(".")[2] in ("bfloat16", "float16")
        self.rounding = HALF_ROUNDING if half else ROUNDING

    @classmethod
    def open(cls, folder: str | Path, *, batch_size: int = 8) -> "SequenceClassifier":
        """Load model and tokenizer of a folder (or a name that transformers knows), in evaluation mode.

        Raises:
            CheckError: transformers is not installed.
        """
        transformers, torch = _optional("transformers"), _optional("torch")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        return cls(model, tokenizer, batch_size=batch_size, inference=torch.inference_mode)

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """The model's only logit for each conversation with its answer."""
        texts = [self._render(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
        scores = [np.zeros(0, np.float32)]
        for first in range(0, len(texts), self._batch_size):
            inputs = self._tokenizer(
                texts[first : first + self._batch_size],
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            with self._inference():
                logits = self._model(**inputs).logits
            scores.append(np.asarray(logits.float().cpu().numpy())[:, 0])
        return np.concatenate(scores)

    def _render(self, prompt: Prompt, output: str) -> str:
        if getattr(self._tokenizer, "chat_template", None) is None:
            return f"{text_of(prompt)}\n\n{output}"
        messages = [{"role": role, "content": content} for role, content in prompt]
        text: str = self._tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": output}], tokenize=False
        )
        return text


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckError(
            f"{name}: is not installed, and a transformers model needs it; pip install torch transformers"
        ) from error


def imported(model: str) -> Any:
    """The scorer that MODULE:NAME names in Python: one, or a function of (prompts, outputs, references) or (prompts,
    outputs).

    Raises:
        CheckError: there is no such thing, or it is no scorer.
    """
    module_name, _, path = model.partition(":")
    # A module beside the user, as for python -m.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise CheckError(
            f"{model}: cannot be imported ({error}); name MODULE:NAME of something Python finds"
        ) from error
    return as_scorer(found, model)


def as_scorer(found: Any, name: str) -> Any:
    """A scorer as it is, an ordinary reward model or a function wrapped.

    Raises:
        CheckError: it is none of these.
    """
    if levels_of(found):
        return found
    if callable(getattr(found, "quality", None)):
        return Difference(found)
    if callable(found) and not isinstance(found, type):
        count = len(inspect.signature(found).parameters)
        if count == 3:
            return GapFunction(found)
        if count == 2:
            return Difference(QualityFunction(found))
    raise CheckError(
        f"{name}: is a {type(found).__name__}; must be a scorer (gap, quality or score_rows), a function of (prompts, "
        "outputs, references), or one of (prompts, outputs); wrap it in one"
    )
