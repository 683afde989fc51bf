"""A frozen tokenizer: text to token ids and back, with role tokens that no text can produce.

It wraps the `tokenizers` library. Role tokens open the messages of a prompt and close the segments of a context
tree; they are laid out by `pit.data.template` and never parsed from text, so a user who types one writes only bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pit.data.atomic import write_file
from pit.data.errors import DataError


@dataclass(frozen=True)
class RoleTokens:
    """Which token of the vocabulary serves each role; `pad` may be the same token as `output`, all others differ.

    system, user, assistant: open a message inside the input.
    input, reference, output: close the segment of that kind; `output` is the end of an answer (EOS).
    pad: fills the places that hold nothing.
    """

    system: str = "<|system|>"
    user: str = "<|user|>"
    assistant: str = "<|assistant|>"
    input: str = "<|input|>"
    reference: str = "<|reference|>"
    output: str = "<|output|>"
    pad: str = "<|pad|>"


class Tokenizer:
    """Text to ids and back. Build one with `load`, `from_json` or `train_bpe`; it never changes afterwards.

    Attributes:
        roles: the role tokens by name.
        role_ids: id of each role, keyed by the field names of `RoleTokens`.
        vocab_size: number of rows an embedding table needs (largest id + 1).
        hash: hex digest of the canonical JSON and the role tokens; equal hash, equal ids.
    """

    def __init__(self, inner: tokenizers.Tokenizer, roles: RoleTokens) -> None:
        inner.no_truncation()
        inner.no_padding()
        # Role tokens typed in a text are then encoded like any other text.
        inner.encode_special_tokens = True
        self._inner = inner
        self._json = inner.to_str(pretty=False)
        settings: dict[str, Any] = json.loads(self._json)
        self._adds_space = _adds_prefix_space(settings.get("pre_tokenizer"))
        self.roles = roles
        self.role_ids = _role_ids(inner, roles)
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        canonical = json.dumps([settings, dataclasses.asdict(roles)], sort_keys=True, ensure_ascii=True)
        self.hash = hashlib.sha256(canonical.encode()).hexdigest()
        self._check_roles_unreachable()

    @classmethod
    def from_json(cls, text: str, roles: RoleTokens | None = None) -> "Tokenizer":
        """The tokenizer that a tokenizer.json's text describes.

        Raises:
            DataError: not a tokenizer, or it lacks a role token.
        """
        try:
            # Not from_str, which raises a bare Exception for every fault of the file.
            inner = tokenizers.Tokenizer.from_buffer(text.encode())
        except ValueError as error:
            raise DataError(f"not a tokenizer.json of the tokenizers library: {error}") from error
        return cls(inner, roles or RoleTokens())

    @classmethod
    def load(cls, path: str | Path, roles: RoleTokens | None = None) -> "Tokenizer":
        """Read a tokenizer.json.

        Args:
            path: the file.
            roles: which of its tokens serve the roles, where they are not the default names.

        Raises:
            DataError: no such file, not a tokenizer, or it lacks a role token.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such tokenizer file; name a tokenizer.json")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), roles)
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE whose words carry their leading space, the first word of a text included.

        Args:
            texts: what to learn merges from.
            vocab_size: upper bound of the vocabulary: 7 role tokens, 256 bytes, and merges.

        Raises:
            DataError: the vocabulary cannot hold the bytes and the role tokens.
        """
        names = list(dataclasses.astuple(RoleTokens()))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(names) + len(alphabet):
            raise DataError(
                f"vocab_size={vocab_size} is below {len(names) + len(alphabet)}, "
                f"the {len(alphabet)} bytes and {len(names)} role tokens; raise it"
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=names, initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner, RoleTokens())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without role tokens.

        >>> tokenizer = Tokenizer.train_bpe(["red lamp"], 300)
        >>> tokenizer.decode(tokenizer.encode("<|user|> red"))
        '<|user|> red'
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, tokenised on all cores."""
        prepared = [self._prepare(text) for text in texts]
        return [each.ids for each in self._inner.encode_batch_fast(prepared, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; role and other special tokens are left out, broken UTF-8 becomes U+FFFD."""
        text = self._inner.decode([int(each) for each in ids], skip_special_tokens=True)
        return text.removeprefix(" ") if self._adds_space else text

    def to_json(self) -> str:
        """The text of the tokenizer.json; role names other than the default are not part of it."""
        return self._json

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json, whole or not at all."""
        write_file(path, self._json.encode())

    def __reduce__(self) -> tuple[Any, ...]:
        return (Tokenizer.from_json, (self._json, self.roles))

    def _prepare(self, text: str) -> str:
        # The library adds its prefix space only where the text has none, which would make " a" and "a" the same.
        return f" {text}" if self._adds_space and text.startswith(" ") else text

    def _check_roles_unreachable(self) -> None:
        ids = set(self.role_ids.values())
        for name in dict.fromkeys(dataclasses.astuple(self.roles)):
            for text in (name, f"a{name}b", f"a {name} b"):
                if ids & set(self.encode(text)):
                    raise DataError(
                        f"this tokenizer turns the text {text!r} into a role token, so a user could forge one; "
                        "serve the role with a token that its model cannot produce (RoleTokens)"
                    )


def _adds_prefix_space(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether a ByteLevel pre-tokenizer inside puts a space before a text that starts without one."""
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(_adds_prefix_space(each) for each in pre_tokenizer["pretokenizers"])
    return pre_tokenizer["type"] == "ByteLevel" and bool(pre_tokenizer["add_prefix_space"])


def _role_ids(inner: tokenizers.Tokenizer, roles: RoleTokens) -> dict[str, int]:
    """Id of every role, with the checks that they exist, are special and differ."""
    named = dataclasses.asdict(roles)
    vocabulary = inner.get_vocab(with_added_tokens=True)
    missing = {role: token for role, token in named.items() if token not in vocabulary}
    if missing:
        raise DataError(
            f"the tokenizer has no token for {missing}; pass RoleTokens(...) that names existing special tokens, "
            "or add these tokens to its added_tokens with special=true"
        )
    ids = {role: vocabulary[token] for role, token in named.items()}
    special = {token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special}
    ordinary = {role: named[role] for role, token_id in ids.items() if token_id not in special}
    if ordinary:
        raise DataError(
            f"role tokens {ordinary} are not special tokens of the tokenizer, so text could produce them; "
            "name tokens that its added_tokens list with special=true"
        )
    distinct = {role: token_id for role, token_id in ids.items() if role != "pad"}
    if len(set(distinct.values())) != len(distinct) or ids["pad"] in [
        token_id for role, token_id in distinct.items() if role != "output"
    ]:
        raise DataError(f"role tokens must differ (only pad may equal output), got {named}")
    return ids
