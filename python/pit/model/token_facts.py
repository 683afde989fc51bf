"""Facts about a pretrained model's tokens that its weights do not hold: chat template, special tokens, ends of answers.

In a folder of transformers they are spread over chat_template.jinja, tokenizer_config.json, generation_config.json and
config.json; the newest place wins, as there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from pit.model.config_json import ConfigJson, read_json
from pit.model.errors import ModelFileError, refusal

TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
GENERATION = "generation_config.json"
FILES = (TOKENIZER, TEMPLATE, SETTINGS, SPECIAL, GENERATION)
"""Files of a folder that the facts come from, besides config.json."""

NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Special tokens that a chat template may name."""


@dataclass(frozen=True)
class TokenFacts:
    """Facts about the tokens of a pretrained model.

    chat_template: the jinja text that renders a conversation, or None.
    special_tokens: text of the tokens in `NAMES` that the tokenizer has.
    bos_id: token that opens a text, or None.
    eos_ids: tokens that end an answer, the format's own first; may be empty.
    """

    chat_template: str | None
    special_tokens: Mapping[str, str]
    bos_id: int | None
    eos_ids: tuple[int, ...]


def read_token_facts(folder: Path, config: ConfigJson, vocab_size: int) -> TokenFacts:
    """Return the facts of a folder of transformers.

    Args:
        folder: the folder.
        config: its config.json.
        vocab_size: rows of the embedding.

    Raises:
        ModelFileError: a file is not JSON, or a field has another type than transformers writes.
    """
    settings, special_map, generation = (_optional(folder / name) for name in (SETTINGS, SPECIAL, GENERATION))
    texts = {name: _text(folder / SETTINGS, name, settings.get(name)) for name in NAMES}
    others = {name: _text(folder / SPECIAL, name, special_map.get(name)) for name in NAMES}
    special = {name: text for name in NAMES if (text := texts[name] or others[name]) is not None}
    ids = _ids_of(folder / TOKENIZER, special)
    bos = ids.get("bos_token") if settings or special_map else _first(config.path, "bos_token_id", config.values)
    eos = (
        _token_ids(folder / GENERATION, "eos_token_id", generation)
        or _token_ids(config.path, "eos_token_id", config.values)
        or tuple(ids[name] for name in ["eos_token"] if name in ids)
    )
    for token in (*eos, *([] if bos is None else [bos])):
        if token >= vocab_size:
            rule = f"must be within the vocabulary of {vocab_size} rows"
            raise refusal(f"{folder}: token id", token, rule, "fetch config.json and the tokenizer's files again")
    return TokenFacts(_template(folder, settings), special, bos, eos)


def template_of(where: str, value: object) -> str | None:
    """Return the chat template of a field: its text, or the one named "default" of a list of named texts.

    Raises:
        ModelFileError: the field is neither, or its list has no default.
    """
    if value is None or isinstance(value, str):
        return value
    named: dict[Any, Any] = {}
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    template = named.get("default")
    if not isinstance(template, str):
        rule = "must be a text, or a list of named texts with one named 'default'"
        raise refusal(
            f"{where}: chat_template", sorted(map(str, named)) or value, rule, "name the one to use 'default'"
        )
    return template


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        try:
            return (folder / TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(f"{folder / TEMPLATE}: is not UTF-8 ({error}); fetch the file again") from error
    return template_of(str(folder / SETTINGS), settings.get("chat_template"))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _text(path: Path, name: str, value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    if content is None or isinstance(content, str):
        return content
    raise refusal(f"{path}: {name}", value, "must be a text, an object with its content, or null", "correct it")


def _ids_of(path: Path, special: Mapping[str, str]) -> dict[str, int]:
    """Return the ids of the special tokens in the tokenizer, if the folder has one."""
    if not special or not path.is_file():
        return {}
    inner = open_tokenizer(path.read_bytes(), str(path))
    ids = {name: inner.token_to_id(text) for name, text in special.items()}
    return {name: token for name, token in ids.items() if token is not None}


def open_tokenizer(content: bytes, where: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of the content of a tokenizer.json.

    Raises:
        ModelFileError: the content is something else.
    """
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except ValueError as error:
        raise ModelFileError(f"{where}: not a tokenizer.json ({error}); fetch the file again") from error


def _first(path: Path, name: str, values: Mapping[str, Any]) -> int | None:
    return next(iter(_token_ids(path, name, values)), None)


def _token_ids(path: Path, name: str, values: Mapping[str, Any]) -> tuple[int, ...]:
    value = values.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise refusal(f"{path}: {name}", value, "must be a token id, a list of them, or null", "correct it")
    return tuple(dict.fromkeys(ids))
