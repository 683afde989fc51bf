"""The tokenizer in a GGUF file's metadata as a tokenizer.json, and the facts about its tokens.

Two kinds are known: byte-level BPE ("gpt2") with the splits of text in `_SPLITS`, and SentencePiece's BPE with byte
fallback ("llama"), whose merges follow from the scores of its pieces.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pit.model.errors import refusal
from pit.model.token_facts import TokenFacts, template_of

_IDS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
"""Name in the metadata of each special token."""

_ENDS = ("eos", "eot", "eom")
"""Tokens that end an answer: of a text, of a turn, of a message."""

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# Contractions; a word with one sign before it; digits; signs; line ends; other white space.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL | {"use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL | {"use_regex": True}],
    "llama-bpe": [_split(_WORDS.format(digits="{1,3}")), _BYTE_LEVEL],
    "qwen2": [_split(_WORDS.format(digits="")), _BYTE_LEVEL],
}
"""Pre-tokenizers by `tokenizer.ggml.pre`."""


def read_token_facts(path: Path, metadata: Mapping[str, Any], vocab_size: int) -> TokenFacts:
    """Return the facts about the tokens of a GGUF file.

    Raises:
        ModelFileError: the vocabulary is missing, or an id lies outside of it.
    """
    tokens = _tokens(path, metadata)
    ids = {
        name: token
        for name in (*_IDS.values(), *_ENDS)
        if (token := _id(path, metadata, name, len(tokens))) is not None
    }
    if len(tokens) > vocab_size:
        rule = f"must fit into the embedding of {vocab_size} rows"
        raise refusal(f"{path}: tokens", len(tokens), rule, "fetch the file again")
    special = {text: tokens[ids[name]] for text, name in _IDS.items() if name in ids}
    template = template_of(str(path), metadata.get("tokenizer.chat_template"))
    ends = tuple(dict.fromkeys(ids[name] for name in _ENDS if name in ids))
    return TokenFacts(template, special, ids.get("bos"), ends)


def read_tokenizer(path: Path, metadata: Mapping[str, Any]) -> bytes:
    """Return the tokenizer of a GGUF file as the content of a tokenizer.json.

    Raises:
        ModelFileError: the vocabulary is malformed, or its kind is not known here.
    """
    tokens, kinds = _tokens(path, metadata), _list(path, metadata, "token_type", int)
    if len(kinds) != len(tokens):
        rule = f"must have one type for each of {len(tokens)} tokens"
        raise refusal(f"{path}: tokenizer.ggml.token_type", len(kinds), rule, "fetch the file again")
    makers = {"gpt2": _byte_level, "llama": _sentencepiece}
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in makers:
        rule = f"must be one of {', '.join(makers)}"
        raise refusal(f"{path}: tokenizer.ggml.model", kind, rule, "name the model's tokenizer.json in its place")
    added = [
        {
            "id": token,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token_kind != _USER,
        }
        for token, (text, token_kind) in enumerate(zip(tokens, kinds, strict=True))
        if token_kind in (_CONTROL, _USER) or (token_kind == _UNKNOWN and kind == "llama")
    ]
    parts = makers[kind](path, metadata, tokens, kinds)
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    return json.dumps(whole | parts, ensure_ascii=False).encode()


def _byte_level(path: Path, metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    name = metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in _SPLITS:
        rule = f"must be one of {', '.join(_SPLITS)}, the splits of text that are known"
        raise refusal(f"{path}: tokenizer.ggml.pre", name, rule, "name the model's tokenizer.json in its place")
    merges = [merge.split(" ") for merge in _list(path, metadata, "merges", str)]
    return {
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[name]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=name == "llama-bpe"),
    }


def _sentencepiece(path: Path, metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    scores = _list(path, metadata, "scores", float)
    if len(scores) != len(tokens):
        rule = f"must have one score for each of {len(tokens)} tokens"
        raise refusal(f"{path}: tokenizer.ggml.scores", len(scores), rule, "fetch the file again")
    pieces = {text: score for text, score, kind in zip(tokens, scores, kinds, strict=True) if kind == _NORMAL}
    space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    unknown = tokens[kinds.index(_UNKNOWN)] if _UNKNOWN in kinds else None
    normalizers = [{"type": "Prepend", "prepend": "▁"}] if space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space else []
    blank = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*normalizers, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [blank, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe(tokens, merges_of(pieces), unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in kinds),
    }


def merges_of(pieces: Mapping[str, float]) -> list[list[str]]:
    """Return the merges of SentencePiece's BPE, first the pairs whose union has the highest score.

    >>> merges_of({"a": 0.0, "b": 0.0, "ab": -1.0, "aba": -2.0, "ba": -3.0})
    [['a', 'b'], ['ab', 'a'], ['a', 'ba'], ['b', 'a']]
    """
    merges = []
    for order, (piece, score) in enumerate(pieces.items()):
        for cut in range(len(piece) - 1, 0, -1):
            if piece[:cut] in pieces and piece[cut:] in pieces:
                merges.append((-score, order, [piece[:cut], piece[cut:]]))
    # Python's sort is stable: of one piece, the longest left part comes first.
    return [merge for _, _, merge in sorted(merges, key=lambda entry: entry[:2])]


def _bpe(tokens: list[str], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    fields = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {text: token for token, text in enumerate(tokens)},
        "merges": merges,
    }
    return fields | changes


def _tokens(path: Path, metadata: Mapping[str, Any]) -> list[str]:
    tokens: list[str] = _list(path, metadata, "tokens", str)
    return tokens


def _list(path: Path, metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
        rule = f"must be a list of {kind.__name__}, which the tokenizer needs"
        shown = type(value).__name__
        raise refusal(f"{path}: tokenizer.ggml.{name}", shown, rule, "convert the model again")
    return value


def _id(path: Path, metadata: Mapping[str, Any], name: str, tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < tokens:
        rule = f"must be one of the {tokens} tokens"
        raise refusal(f"{path}: tokenizer.ggml.{name}_token_id", value, rule, "convert the model again")
    return value
