"""Reward models of PIT's own families as quality scorers: folders of transformers and adapters of PEFT, without torch.

A model is read as transformers reads it: its score is that of the last token of the text that the tokenizer's chat
template makes. No text is cut.
"""

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import tokenizers
from jaxtyping import Array, Float32

from pit.config import ModelConfig
from pit.data.chat import ChatFormat
from pit.model.adapted_source import base_of, is_adapter
from pit.model.adapters import merged
from pit.model.config_json import ConfigJson, read_json
from pit.model.errors import ModelFileError
from pit.model.heads import RewardModel
from pit.model.hub import SCHEME, fetch
from pit.model.params import Params, abstract, merge
from pit.model.peft import load_adapter
from pit.model.pretrained import load_pretrained
from pit.model.shape import read_shape
from pit.model.token_facts import TOKENIZER, TokenFacts, open_tokenizer, read_token_facts
from pit.testing.scorers import ROUNDING, Prompt, prompt_text
from pit.testing.served import ServedFacts, Variant
from pit.testing.shared import shared_rows
from pit.types import Message


class ChatText:
    """The text of a prompt with its answer as a model of transformers gets it: its chat template, its tokenizer.

    Args:
        folder: holds tokenizer.json and its settings.
        config: config.json of the model.
    """

    def __init__(self, folder: Path, config: ConfigJson) -> None:
        self.vocab_size = config.integer("vocab_size")
        self.token_facts: TokenFacts = read_token_facts(folder, config, self.vocab_size)
        path = folder / TOKENIZER
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file, and texts need it; fetch the folder again")
        self._inner: tokenizers.Tokenizer = open_tokenizer(path.read_bytes(), str(path))
        self._config = config
        template = self.token_facts.chat_template
        special = dict(self.token_facts.special_tokens)
        self._format = None if template is None else ChatFormat(template, special, self.token_facts.eos_ids)

    def ids(self, prompt: Prompt, output: str) -> tuple[int, ...]:
        """Return the tokens of a prompt with its output.

        Raises:
            DataError: the chat template refuses the conversation.
        """
        if self._format is None:
            return tuple(self._inner.encode(f"{prompt_text(prompt)}\n\n{output}").ids)
        text = self._format.render([*prompt, Message("assistant", output)], opening=False)
        # The template has written its special tokens.
        return tuple(self._inner.encode(text, add_special_tokens=False).ids)

    @cached_property
    def facts(self) -> ServedFacts:
        """Special tokens of the tokenizer, and of the model's config."""
        special = {token.content: number for number, token in self._inner.get_added_tokens_decoder().items()}
        names = {"bos_token_id": "bos_token", "eos_token_id": "eos_token", "pad_token_id": "pad_token"}
        texts = self.token_facts.special_tokens
        pairs = {
            field: (special.get(texts.get(name, "")), _number(self._config.values.get(field)))
            for field, name in names.items()
        }
        opening = {special.get(texts.get(name, "")) for name in ("bos_token", "unk_token")} - {None}
        ends = frozenset(special.values()) - opening | frozenset(self.token_facts.eos_ids)
        return ServedFacts(self.token_facts.bos_id, ends, self.vocab_size, None, pairs)


def _number(value: object) -> int | None:
    return value if type(value) is int else None


class DecoderClassifier:
    """A quality scorer made of a reward model in memory.

    Args:
        config: shape of its decoder.
        vocab_size: rows of its embedding.
        params: its weights.
        text: its tokens.
        base: its weights without an adapter, None where it has none.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, params: Params, text: ChatText, base: Params | None = None
    ) -> None:
        graphdef = abstract(RewardModel, config, vocab_size)[0]

        def score(params: Params, token: Array, position: Array, visible_until: Array, leaf: Array) -> Array:
            scores: Array = merge(graphdef, params)(token, position, visible_until, leaf)
            return scores

        self.rounding = ROUNDING
        self._params, self._base, self._text, self._score = params, base, text, jax.jit(score)

    @classmethod
    def open(cls, folder: Path) -> "DecoderClassifier":
        """Read a folder of transformers (...ForSequenceClassification), or one of PEFT (SEQ_CLS).

        Raises:
            ModelFileError: a file is missing or damaged, or the decoder does not compute all of the model.
        """
        if not is_adapter(folder):
            config, vocab_size, params = load_pretrained(folder)
            return cls(config, vocab_size, params, ChatText(folder, _config(folder)))
        named = base_of(folder)
        place = fetch(named) if named.startswith(SCHEME) else Path(named)
        config, vocab_size, weights = load_pretrained(place)
        adapter = load_adapter(folder, config)
        if "score" not in adapter.params:
            raise ModelFileError(f"{folder}: adapts a language model; give a reward model (task_type SEQ_CLS)")
        under = {f"decoder.{name}": value for name, value in weights.items() if name != "output"}
        base = {**under, "score": adapter.params["score"]}
        params = merged({**under, **adapter.params}, adapter.config)
        text = ChatText(folder if (folder / TOKENIZER).is_file() else place, _config(place))
        return cls(dataclasses.replace(config, tied=True), vocab_size, params, text, base)

    @property
    def facts(self) -> ServedFacts:
        """Facts about its tokens."""
        return self._text.facts

    def quality(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> Float32[np.ndarray, " n"]:
        """Return the score of each prompt with its output."""
        paths = self.tokens(prompts, outputs)
        scores = np.zeros(len(paths), np.float32)
        for row in shared_rows(paths):
            batch = row.batch
            arrays = batch.token, batch.position, batch.visible_until, batch.leaf
            scores[row.paths] = np.asarray(self._score(self._params, *arrays))[0, : len(row.paths)]
        return scores

    def tokens(self, prompts: Sequence[Prompt], outputs: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens that the model reads for each prompt with its output."""
        return [self._text.ids(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    def variant(self, variant: Variant) -> "DecoderClassifier | None":
        """Return the model without its adapter; it has no padding, and computes in float32."""
        if variant is not Variant.NO_ADAPTER or self._base is None:
            return None
        other = copy.copy(self)
        other._params, other._base = self._base, None
        return other


def reads(folder: Path) -> bool:
    """Return whether a folder holds a reward model of one of PIT's families, or an adapter of one."""
    if is_adapter(folder):
        return True
    try:
        return read_shape(_config(folder)).reward
    except ModelFileError:
        return False


def _config(folder: Path) -> ConfigJson:
    return ConfigJson(folder / "config.json", read_json(folder / "config.json"))
