"""Adapters that make scorers of other things: functions, pairwise reward models, transformers sequence classifiers.

`as_scorer` picks the adapter for an object, `import_scorer` for the MODULE:NAME of the command line.
"""

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

from pit.testing.errors import CheckError, ShapeError
from pit.testing.scorers import HALF_ROUNDING, ROUNDING, Prompt, methods_of, prompt_text, rounding_of


@dataclass(frozen=True)
class GapFunction:
    """A gap scorer made of a function.

    function: takes lists of texts (prompts, outputs, references), returns f32[n].
    rounding: difference that arithmetic may make to a score of magnitude one.
    """

    function: Callable[[list[str], list[str], list[str]], Any]
    rounding: float = ROUNDING

    def gap(self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]) -> Any:
        """Return the function's result, unchecked; `pit.testing.scorers.gaps` checks it."""
        return self.function([prompt_text(prompt) for prompt in prompts], list(outputs), list(references))


@runtime_checkable
class QualityScorer(Protocol):
    """A pairwise (Bradley-Terry) reward model: it scores an output by itself, without a reference."""

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Return the score of each output."""


@dataclass(frozen=True)
class QualityFunction:
    """A quality scorer made of a function.

    function: takes lists of texts (prompts, outputs), returns f32[n].
    rounding: difference that arithmetic may make to a score of magnitude one.
    """

    function: Callable[[list[str], list[str]], Any]
    rounding: float = ROUNDING

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Any:
        """Return the function's result, unchecked."""
        return self.function([prompt_text(prompt) for prompt in prompts], list(outputs))


class Difference:
    """A gap scorer made of a quality scorer: r(x, y) - r(x, y_ref), which is 0 for an answer over itself.

    >>> lengths = QualityFunction(lambda prompts, outputs: np.array([len(y) for y in outputs], np.float32))
    >>> Difference(lengths).gap([()], ["longer"], ["long"])
    array([2.], dtype=float32)
    """

    def __init__(self, model: QualityScorer) -> None:
        self.model, self.rounding = model, rounding_of(model)

    def gap(self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Return the difference of the two scores, both from one call, in the model's own dtype.

        Raises:
            ShapeError: the model does not return one score per output.
        """
        n = len(outputs)
        scores = np.asarray(self.model.quality([*prompts, *prompts], [*outputs, *references]))
        if scores.shape != (2 * n,):
            raise ShapeError(
                f"quality() has shape {scores.shape}, must have shape {(2 * n,)}; return one score per output"
            )
        difference: np.ndarray = scores[:n] - scores[n:]
        return difference

    centred = gap


class SequenceClassifier:
    """A quality scorer made of a transformers `AutoModelForSequenceClassification` with one label, as commonly used.

    Texts are padded to the longest of a batch, on the tokenizer's own side. transformers reads a decoder at its last
    token that is not `config.pad_token_id`, which goes wrong with left padding or without a padding token.

    Args:
        model: the classifier, in evaluation mode.
        tokenizer: its tokenizer; prompts are rendered by its chat template if it has one.
        batch_size: texts per call to the model.
        max_length: tokens at which a text is truncated.
        inference: context in which the model is called.
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
        """Load a model and its tokenizer, in evaluation mode.

        Args:
            folder: a folder, or a name that transformers knows.
            batch_size: texts per call to the model.

        Raises:
            CheckError: torch or transformers is not installed.
        """
        transformers, torch = _import_optional("transformers"), _import_optional("torch")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        return cls(model, tokenizer, batch_size=batch_size, inference=torch.inference_mode)

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Return the model's logit for each prompt with its output."""
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
            return f"{prompt_text(prompt)}\n\n{output}"
        messages = [{"role": role, "content": content} for role, content in prompt]
        text: str = self._tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": output}], tokenize=False
        )
        return text


def _import_optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckError(
            f"{name}: is not installed, and a transformers model needs it; pip install torch transformers"
        ) from error


def import_scorer(model: str) -> Any:
    """Import the object that MODULE:NAME names and return it as a scorer.

    Modules in the working directory are importable, as under `python -m`.

    Raises:
        CheckError: the object cannot be imported, or `as_scorer` refuses it.
    """
    module_name, _, path = model.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        value: Any = importlib.import_module(module_name)
        for name in path.split("."):
            value = getattr(value, name)
    except (ImportError, AttributeError) as error:
        raise CheckError(
            f"{model}: cannot be imported ({error}); give MODULE:NAME of an object in the working directory or on "
            "PYTHONPATH"
        ) from error
    return as_scorer(value, model)


def as_scorer(value: Any, name: str) -> Any:
    """Return a scorer unchanged, and wrap a quality scorer or a function.

    Args:
        value: a scorer, an object with `quality`, a function of (prompts, outputs, references) or (prompts, outputs).
        name: name of the value in messages.

    Raises:
        CheckError: the value is none of these.

    >>> type(as_scorer(lambda prompts, outputs: None, "mine"))
    <class 'pit.testing.adapters.Difference'>
    """
    if methods_of(value):
        return value
    if callable(getattr(value, "quality", None)):
        return Difference(value)
    if callable(value) and not isinstance(value, type):
        count = len(inspect.signature(value).parameters)
        if count == 3:
            return GapFunction(value)
        if count == 2:
            return Difference(QualityFunction(value))
    raise CheckError(
        f"{name}: is of type {type(value).__name__}, must be a scorer (with gap, quality, score_rows or draw) or a "
        "function of (prompts, outputs, references) or of (prompts, outputs); wrap it in such a function"
    )
