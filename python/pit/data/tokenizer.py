"""A frozen tokenizer: text to token ids and back, with special tokens that no text can produce.

It wraps the `tokenizers` library. PIT's own tokenizers have role tokens, which `pit.data.template` places; those of
pretrained models have the special tokens of a chat format, which `pit.data.chat` places. Text that spells such a token
is encoded as ordinary bytes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from pit.atomic import write_file
from pit.data.errors import DataError


@dataclass(frozen=True)
class RoleTokens:
    """Token of the vocabulary for each role. All must differ, except that `pad` may equal `output`.

    system, user, assistant: open a message inside the input.
    input, reference, output: close the segment of that kind; `output` is the end of an answer (EOS).
    pad: fills unused places.
    """

    system: str = "<|system|>"
    user: str = "<|user|>"
    assistant: str = "<|assistant|>"
    input: str = "<|input|>"
    reference: str = "<|reference|>"
    output: str = "<|output|>"
    pad: str = "<|pad|>"


class Tokenizer:
    """Conversion of text to token ids and back. Build one with `load`, `from_json` or `train_bpe`; it never changes.

    Attributes:
        roles: names of the role tokens, None for the tokenizer of a pretrained model.
        role_ids: id of each role, keyed by the field names of `RoleTokens`; empty without roles.
        added: text of each added token, special or not, by id.
        adds_space: whether it puts a space before a text that begins without one.
        vocab_size: number of rows of an embedding table (largest id + 1).
        hash: hex digest of the canonical JSON and the role tokens; equal hashes mean equal ids.
    """

    def __init__(self, inner: tokenizers.Tokenizer, roles: RoleTokens | None) -> None:
        inner.no_truncation()
        inner.no_padding()
        # A text that spells a role token is then encoded like any other text.
        inner.encode_special_tokens = True
        self._inner = inner
        self._json = inner.to_str(pretty=False)
        settings: dict[str, Any] = json.loads(self._json)
        self.adds_space = _adds_prefix_space(settings.get("pre_tokenizer"))
        self.roles = roles
        self.role_ids = {} if roles is None else _role_ids(inner, roles)
        self.added = {token_id: token.content for token_id, token in inner.get_added_tokens_decoder().items()}
        self.vocab_size: int = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        named = None if roles is None else dataclasses.asdict(roles)
        canonical = json.dumps([settings, named], sort_keys=True, ensure_ascii=True)
        self.hash = hashlib.sha256(canonical.encode()).hexdigest()
        self.require_unreachable(self.role_ids.values())

    @classmethod
    def from_json(cls, text: str, roles: RoleTokens | None = None) -> "Tokenizer":
        """Return the tokenizer that the text of a tokenizer.json describes.

        Args:
            text: content of the file.
            roles: its role tokens, if they do not have the default names.

        Raises:
            DataError: not a tokenizer, a missing role token, or one that text can produce.
        """
        return cls(_parsed(text), roles or RoleTokens())

    @classmethod
    def pretrained(cls, text: str) -> "Tokenizer":
        """Return the tokenizer of a pretrained model, which has special tokens of its own and no role tokens.

        Args:
            text: content of its tokenizer.json.

        Raises:
            DataError: not a tokenizer.
        """
        return cls(_parsed(text), None)

    @classmethod
    def load(cls, path: str | Path, roles: RoleTokens | None = None, *, pretrained: bool = False) -> "Tokenizer":
        """Read a tokenizer.json.

        Args:
            path: the file.
            roles: its role tokens, if they do not have the default names.
            pretrained: whether it is that of a pretrained model, without role tokens.

        Raises:
            DataError: no such file, not a tokenizer, a missing role token, or one that text can produce.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such tokenizer file; name a tokenizer.json")
        try:
            text = path.read_text(encoding="utf-8")
            return cls.pretrained(text) if pretrained else cls.from_json(text, roles)
        except (DataError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE. Words include their leading space, and so does the first word of a text.

        Args:
            texts: texts to learn merges from.
            vocab_size: upper bound of the vocabulary: 7 role tokens, 256 bytes, and merges.

        Raises:
            DataError: the vocabulary cannot hold the bytes and the role tokens.
        """
        names = list(dataclasses.astuple(RoleTokens()))
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(names) + len(alphabet):
            raise DataError(
                f"vocab_size={vocab_size} is below {len(names) + len(alphabet)}, "
                f"the {len(alphabet)} bytes and {len(names)} role tokens; raise vocab_size"
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
        """Return the token ids of a text, without special tokens.

        >>> tokenizer = Tokenizer.train_bpe(["red lamp"], 300)
        >>> tokenizer.decode(tokenizer.encode("<|user|> red"))
        '<|user|> red'
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts, tokenised on all cores."""
        prepared = [self._prepare(text) for text in texts]
        return [encoding.ids for encoding in self._inner.encode_batch_fast(prepared, add_special_tokens=False)]

    def encode_format(self, text: str) -> list[int]:
        """Return the token ids of text that a chat format wrote, in which special tokens are parsed."""
        ids: list[int] = self._parsing.encode(text, add_special_tokens=False).ids
        return ids

    def guarding(self, ids: Collection[int]) -> "Tokenizer":
        """Return this tokenizer with some added tokens made special, so `encode` takes text that spells one as bytes.

        Args:
            ids: ids of added tokens.

        Raises:
            DataError: a text still becomes one of them, or another special token.
        """
        settings: dict[str, Any] = json.loads(self._json)
        for token in settings["added_tokens"]:
            token["special"] = token["special"] or token["id"] in ids
        guarded = Tokenizer(_parsed(json.dumps(settings)), self.roles)
        guarded.require_unreachable(ids)
        return guarded

    def without_prefix(self) -> "Tokenizer":
        """Return this tokenizer without the space that it puts before a text: one for texts inside of a longer one."""
        settings: dict[str, Any] = json.loads(self._json)
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            settings[part] = _without_prefix(settings.get(part))
        return Tokenizer(_parsed(json.dumps(settings)), self.roles)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, without role and other special tokens; invalid UTF-8 becomes U+FFFD."""
        text = self._inner.decode([int(token_id) for token_id in ids], skip_special_tokens=True)
        return text.removeprefix(" ") if self.adds_space else text

    def to_json(self) -> str:
        """Return the text of the tokenizer.json; it does not include role names other than the default ones."""
        return self._json

    def save(self, path: str | Path) -> None:
        """Write the tokenizer.json, whole or not at all."""
        write_file(path, self._json.encode())

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuilt, (self._json, self.roles))

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """The same tokenizer, parsing special tokens."""
        inner = _parsed(self._json)
        inner.encode_special_tokens = False
        return inner

    def require_unreachable(self, ids: Collection[int]) -> None:
        """Raise if a text becomes one of some added tokens.

        Raises:
            DataError: it does.
        """
        for token_id in sorted(ids):
            name = self.added[token_id]
            for text in (name, f"a{name}b", f"a {name} b"):
                if set(ids) & set(self.encode(text)):
                    raise DataError(
                        f"this tokenizer turns the text {text!r} into a special token, so a user could forge one; "
                        "name a token that its model cannot produce"
                    )

    def _prepare(self, text: str) -> str:
        # The library adds its prefix space only to a text without one, so " a" and "a" would have the same ids.
        return f" {text}" if self.adds_space and text.startswith(" ") else text


def _rebuilt(text: str, roles: RoleTokens | None) -> Tokenizer:
    """Return a tokenizer from its pickled parts."""
    return Tokenizer(_parsed(text), roles)


def _parsed(text: str) -> tokenizers.Tokenizer:
    """Return the library's tokenizer of the text of a tokenizer.json."""
    try:
        # from_str would raise a bare Exception for every fault of the file.
        return tokenizers.Tokenizer.from_buffer(text.encode())
    except ValueError as error:
        raise DataError(
            f"not a tokenizer.json of the tokenizers library ({error}); name a file that it wrote"
        ) from error


def _adds_prefix_space(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Return whether a ByteLevel pre-tokenizer inside adds a space to a text that starts without one."""
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(_adds_prefix_space(part) for part in pre_tokenizer["pretokenizers"])
    return pre_tokenizer["type"] == "ByteLevel" and bool(pre_tokenizer["add_prefix_space"])


_PARTS = ("normalizers", "pretokenizers", "decoders")
"""Lists of parts of a sequence in a tokenizer.json."""


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a part of a tokenizer.json that puts no space before a text, and takes none away; None where it is none.

    SentencePiece's models have the space as a normalizer (Llama 2) or as Metaspace, and drop it when they decode.
    """
    if part is None or part["type"] == "Prepend" or (part["type"] == "Strip" and part.get("start")):
        return None
    if part["type"] == "Sequence":
        return part | {
            name: [kept for each in part[name] if (kept := _without_prefix(each)) is not None]
            for name in _PARTS
            if name in part
        }
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never"}
    return part | ({"add_prefix_space": False} if "add_prefix_space" in part else {})


def _role_ids(inner: tokenizers.Tokenizer, roles: RoleTokens) -> dict[str, int]:
    """Return the id of every role; raise unless all exist, are special tokens and differ."""
    named = dataclasses.asdict(roles)
    vocabulary = inner.get_vocab(with_added_tokens=True)
    missing = {role: token for role, token in named.items() if token not in vocabulary}
    if missing:
        raise DataError(
            f"the tokenizer has no token for {missing}; name existing special tokens in RoleTokens(...), or add these "
            "to its added_tokens with special=true"
        )
    ids = {role: vocabulary[token] for role, token in named.items()}
    special = {token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special}
    ordinary = {role: named[role] for role, token_id in ids.items() if token_id not in special}
    if ordinary:
        raise DataError(
            f"role tokens {ordinary} are not special tokens of the tokenizer, so text could produce them; name tokens "
            "of its added_tokens with special=true"
        )
    distinct = {role: token_id for role, token_id in ids.items() if role != "pad"}
    if len(set(distinct.values())) != len(distinct) or ids["pad"] in [
        token_id for role, token_id in distinct.items() if role != "output"
    ]:
        raise DataError(f"role tokens {named} must differ (only pad may equal output); name another token for one")
    return ids
