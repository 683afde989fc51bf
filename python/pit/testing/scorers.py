"""What a scorer can be asked, level by level, and adapters that make one of a function or of a transformers model.

A level is a method; a scorer has the levels whose methods it has. What comes back is checked here, once, so that a
scorer that raises, returns wrong shapes or types, or NaN is told apart from one that is wrong.
"""

import enum
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32

from pit.testing.faults import CheckError, NotFinite, Raised, Violation, WrongShape, WrongType
from pit.types import Message

Prompt = tuple[Message, ...]

ROUNDING = 2.0**-14
"""Difference that float32 arithmetic may make to a score of size one: 512 roundings of 2^-23."""

HALF_ROUNDING = 2.0**-4
"""The same for models that compute in bfloat16 or float16: 8 roundings of 2^-7."""


class Item(NamedTuple):
    """One question to a gap scorer: how much better is the output than the reference, for this prompt?"""

    prompt: Prompt
    output: str
    reference: str


class Level(enum.Enum):
    """What a scorer can be asked; the value names its method."""

    GAP = "gap"
    CENTRED = "centred"
    ROWS = "score_rows"
    LOSS = "loss_rows"
    GRADIENTS = "grad_rows"
    SAMPLES = "draw"


class GapScorer(Protocol):
    """The least that a scorer is: f32[n] of n prompts, outputs and references; larger favours the output.

    Optional: `centred`, of the same signature, a gap that is 0 where output and reference are the same;
    `rounding`, the difference that arithmetic may make to a score of size one (`ROUNDING` if it has none).
    """

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Gap of each output over its reference."""


def levels_of(scorer: object) -> frozenset[Level]:
    """The levels that a scorer has."""
    return frozenset(level for level in Level if callable(getattr(scorer, level.value, None)))


def rounding_of(scorer: object) -> float:
    """The difference that arithmetic may make to a score of size one."""
    return float(getattr(scorer, "rounding", ROUNDING))


def asked(scorer: object, level: Level, *arguments: Any) -> Any:
    """Call a level's method.

    Raises:
        Raised: it raises.
    """
    try:
        return getattr(scorer, level.value)(*arguments)
    except Violation:
        raise
    except Exception as error:  # Whatever a user's model raises is a finding of the check, not its end.
        raise Raised(f"{level.value}() raised {type(error).__name__}: {str(error)[:300]}") from error


def checked(name: str, value: Any, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."]:
    """A result that is finite float32 of the shape.

    Raises:
        WrongShape, WrongType, NotFinite: it is not.
    """
    array = np.asarray(value)
    if array.shape != shape:
        raise WrongShape(f"{name} has shape {array.shape}, not {shape}; return one score for each question, in order")
    if array.dtype != np.float32:
        raise WrongType(f"{name} has type {array.dtype}, not float32; integers and other floats lose or hide digits")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise NotFinite(f"{name}{bad[0].tolist()} is {array[tuple(bad[0])]}; {len(bad)} of {array.size} are not finite")
    return array


def gaps(scorer: object, items: Sequence[Item], level: Level = Level.GAP) -> Float32[np.ndarray, " n"]:
    """Checked gaps of items, asked in one call.

    Raises:
        Violation: the scorer raises, or its result has a wrong shape, type, or NaN.
    """
    prompts, outputs, references = ([each[i] for each in items] for i in range(3))
    return checked(f"{level.value}()", asked(scorer, level, prompts, outputs, references), (len(items),))


def text_of(prompt: Prompt) -> str:
    r"""A conversation as plain text: one user message is itself, others are marked by their roles.

    >>> text_of((Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Help")))
    'user: Hi\n\nassistant: Yes?\n\nuser: Help'
    """
    if len(prompt) == 1 and prompt[0].role == "user":
        return prompt[0].content
    return "\n\n".join(f"{role}: {content}" for role, content in prompt)


@dataclass(frozen=True)
class GapFunction:
    """A gap scorer of any function of (prompts, outputs, references), lists of text, to a float32 vector."""

    function: Callable[[list[str], list[str], list[str]], Any]
    rounding: float = ROUNDING

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """What the function says."""
        result: np.ndarray = self.function([text_of(p) for p in prompts], list(outputs), list(references))
        return result


class QualityScorer(Protocol):
    """An ordinary reward model: f32[n] of n prompts and outputs."""

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Score of each output."""


@dataclass(frozen=True)
class QualityFunction:
    """A quality scorer of any function of (prompts, outputs), lists of text, to a float32 vector."""

    function: Callable[[list[str], list[str]], Any]
    rounding: float = ROUNDING

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """What the function says."""
        result: np.ndarray = self.function([text_of(p) for p in prompts], list(outputs))
        return result


class Difference:
    """An ordinary reward model as a gap scorer: r(x, y) - r(x, y_ref), which has a zero of its own."""

    def __init__(self, model: QualityScorer) -> None:
        self.model, self.rounding = model, rounding_of(model)

    def gap(
        self, prompts: Sequence[Prompt], outputs: Sequence[str], references: Sequence[str]
    ) -> Float32[np.ndarray, " n"]:
        """Difference of two scores, asked for in one call."""
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
