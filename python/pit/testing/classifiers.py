"""Sequence classifiers of transformers as quality scorers, as they are commonly used; they need torch.

`pit.testing.decoders` reads those of PIT's own families without torch.
"""

import copy
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from pit.testing.errors import CheckError
from pit.testing.scorers import HALF_ROUNDING, ROUNDING, Prompt, prompt_text
from pit.testing.served import ServedFacts, Variant

_MAX_LENGTH = 2048


class SequenceClassifier:
    """A quality scorer made of a transformers `AutoModelForSequenceClassification` with one label.

    Texts are padded to the longest of a batch, on the tokenizer's own side. transformers reads a decoder at its last
    token that is not `config.pad_token_id`, which goes wrong with left padding or without a padding token. Special
    tokens are added only to texts without a chat template, which has its own.

    Args:
        model: the classifier, in evaluation mode.
        tokenizer: its tokenizer; prompts are rendered by its chat template if it has one.
        batch_size: texts per call to the model.
        max_length: tokens at which a text is cut; None for the tokenizer's own limit, at most 2,048.
        inference: context in which the model is called.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        inference: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._model, self._tokenizer, self._inference = model, tokenizer, inference
        self._batch_size = batch_size
        limit = int(min(getattr(tokenizer, "model_max_length", _MAX_LENGTH), _MAX_LENGTH))
        self._max_length = limit if max_length is None else max_length
        self._half = str(getattr(model, "dtype", "float32")).rpartition(".")[2] in ("bfloat16", "float16")
        self.rounding = HALF_ROUNDING if self._half else ROUNDING

    @classmethod
    def open(cls, folder: str | Path, *, batch_size: int = 8) -> "SequenceClassifier":
        """Load a model and its tokenizer, in evaluation mode.

        Args:
            folder: a folder, or a name that transformers knows.
            batch_size: texts per call to the model.

        Raises:
            CheckError: torch or transformers is not installed, transformers cannot load the model or its tokenizer, or
                the model has several labels.
        """
        transformers, torch = _import_optional("transformers"), _import_optional("torch")
        try:
            model = transformers.AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        except Exception as error:  # transformers raises errors of many types for a folder that lacks something.
            reason = " ".join(str(error).split())[:300]
            raise CheckError(
                f"{folder}: transformers cannot load it ({type(error).__name__}: {reason}); save the model and its "
                "tokenizer there again, with save_pretrained"
            ) from error
        labels = int(getattr(model.config, "num_labels", 1))
        if labels != 1:
            raise CheckError(
                f"{folder}: num_labels = {labels}: must be 1, a score; for a classifier give MODULE:NAME of a function "
                "of (prompts, outputs) that returns the logit of the label that you mean"
            )
        return cls(model, tokenizer, batch_size=batch_size, inference=torch.inference_mode)

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Return the model's logit for each prompt with its output."""
        texts = [self._render(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
        scores = [np.zeros(0, np.float32)]
        for first in range(0, len(texts), self._batch_size):
            inputs = self._encode(texts[first : first + self._batch_size])
            with self._inference():
                logits = self._model(**inputs).logits
            scores.append(np.asarray(logits.float().cpu().numpy())[:, 0])
        return np.concatenate(scores)

    def tokens(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens that the model reads for each prompt with its output, without padding."""
        texts = [self._render(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
        return [tuple(int(token) for token in self._encode([text])["input_ids"][0]) for text in texts]

    def template_tokens(self, prompt: Prompt, output: str) -> tuple[int, ...] | None:
        """Return the tokens of the tokenizer's chat template; None without one."""
        if not self._chats:
            return None
        ids = self._tokenizer.apply_chat_template(_messages(prompt, output), tokenize=True, return_dict=False)
        return tuple(int(token) for token in ids)

    @property
    def facts(self) -> ServedFacts:
        """The tokenizer's special tokens, and those of the model's config."""
        tokenizer, config = self._tokenizer, getattr(self._model, "config", None)
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        special = {name: (_id(tokenizer, name), _id(config, name)) for name in names}
        bos, pad, eos = (_id(tokenizer, name) for name in ("bos_token_id", "pad_token_id", "eos_token_id"))
        others = {bos, _id(tokenizer, "unk_token_id"), None} | ({pad} if pad != eos else set())
        ends = frozenset(getattr(tokenizer, "all_special_ids", ())) - others
        rows = getattr(config, "vocab_size", None)
        return ServedFacts(bos, ends, len(tokenizer) if rows is None else int(rows), self._max_length, special)

    def variant(self, variant: Variant) -> "SequenceClassifier | None":
        """Return the model with its texts padded on the other side, in float32, or without its adapter."""
        other = copy.copy(self)
        if variant is Variant.OTHER_PADDING:
            other._tokenizer = copy.copy(self._tokenizer)
            other._tokenizer.padding_side = "left" if self._tokenizer.padding_side == "right" else "right"
        elif variant is Variant.FLOAT32 and self._half:
            other._model, other.rounding = copy.deepcopy(self._model).float(), ROUNDING
        elif variant is Variant.NO_ADAPTER and hasattr(self._model, "disable_adapter"):
            other._inference = _both(self._inference, self._model.disable_adapter)
        else:
            return None
        return other

    @property
    def _chats(self) -> bool:
        return getattr(self._tokenizer, "chat_template", None) is not None

    def _encode(self, texts: list[str]) -> Any:
        return self._tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._max_length,
            add_special_tokens=not self._chats,
            return_tensors="pt",
        )

    def _render(self, prompt: Prompt, output: str) -> str:
        if not self._chats:
            return f"{prompt_text(prompt)}\n\n{output}"
        text: str = self._tokenizer.apply_chat_template(_messages(prompt, output), tokenize=False)
        return text


def _messages(prompt: Prompt, output: str) -> list[dict[str, str]]:
    messages = [{"role": role, "content": content} for role, content in prompt]
    return [*messages, {"role": "assistant", "content": output}]


def _id(holder: Any, name: str) -> int | None:
    """Return a token id of a tokenizer or a config; None where it has none, or several."""
    value = getattr(holder, name, None)
    return value if isinstance(value, int) else None


def _both(
    outer: Callable[[], AbstractContextManager[Any]], inner: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes the context of two."""

    def context() -> AbstractContextManager[Any]:
        stack = ExitStack()
        for part in (outer, inner):
            stack.enter_context(part())
        return stack

    return context


def _import_optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckError(
            f"{name}: is not installed, and a transformers model needs it; pip install torch transformers"
        ) from error
