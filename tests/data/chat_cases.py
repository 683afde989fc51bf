"""Chat formats with small tokenizers: minimal forms of those of known models."""

import functools
import json
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from pit.data.chat import ChatFormat, ChatTemplate
from pit.data.tokenizer import Tokenizer
from pit.types import Message

FOLDER = Path(__file__).with_name("chat")
REQUEST = "Improve your answer. Write only the improved answer."
DAY = "2024-07-26"
TEXTS = (
    "describe the red lamp, please; it is small and cheap",
    "system user assistant model You are a helper. Today Date",
    REQUEST,
    "a b c d e 0 1 2 3 (one) two. three? four!\n\n\n\n",
)
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Words of Llama 3 and Qwen, which keep line ends together whatever follows them."""

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SENTENCE = ("<unk>", "<s>", "</s>")
MISTRAL = (*SENTENCE, "[INST]", "[/INST]")
GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")


def byte_level(special, plain=(), words=None):
    """Return a byte-level BPE; `plain` are added tokens that are not special, as Qwen's marks of thinking."""
    inner = tokenizers.Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    split = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*split, byte])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_special_tokens(list(special))
    inner.add_tokens(list(plain))
    return inner


def sentence_level(special, prefix="none"):
    """Return a BPE over whole texts with spaces as letters and bytes for rare characters, as Gemma's.

    Llama 2's puts a space before each text between special tokens, "all", and Mistral's newer one before the "first".
    """
    inner = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
    blank = normalizers.Replace(" ", "\u2581")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "first":
        inner.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="first", split=False)
    else:
        prepend = [normalizers.Prepend("\u2581")] if prefix == "all" else []
        inner.normalizer = normalizers.Sequence([*prepend, blank]) if prepend else blank
    inner.decoder = decoders.Sequence([*parts, *([] if prefix == "none" else [decoders.Strip(" ", 1, 0)])])
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=430, special_tokens=names, show_progress=False)
    inner.train_from_iterator(TEXTS, trainer)
    # The trainer takes the bytes for special tokens, which decoding leaves out.
    settings = json.loads(inner.to_str())
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] in special]
    return tokenizers.Tokenizer.from_str(json.dumps(settings))


@functools.cache
def tokenizer(name):
    """Return the tokenizer of a format."""
    if name.startswith("gemma"):
        return Tokenizer.pretrained(sentence_level(GEMMA).to_str())
    if name in ("zephyr", "mistral"):
        special, prefix = (SENTENCE, "all") if name == "zephyr" else (MISTRAL, "first")
        return Tokenizer.pretrained(sentence_level(special, prefix).to_str())
    if name == "llama3":
        return Tokenizer.pretrained(byte_level(LLAMA, words=WORDS).to_str())
    if name.startswith("qwen"):
        return Tokenizer.pretrained(byte_level(CHATML, THINK if name == "qwen3" else (), WORDS).to_str())
    return Tokenizer.pretrained(byte_level(CHATML).to_str())


def ids_of(name, *texts):
    """Return the ids of added tokens."""
    by_text = {text: number for number, text in tokenizer(name).added.items()}
    return tuple(by_text[text] for text in texts)


@functools.cache
def chat_format(name):
    """Return a chat format with the special tokens and EOS ids of its model."""
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    if name.startswith("gemma"):
        special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        return ChatFormat(source, special, ids_of(name, "<eos>", "<end_of_turn>"), DAY)
    if name in ("zephyr", "mistral"):
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
        return ChatFormat(source, special, ids_of(name, "</s>"), DAY)
    if name == "llama3":
        special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        return ChatFormat(source, special, ids_of(name, "<|end_of_text|>", "<|eot_id|>"), DAY)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return ChatFormat(source, special, ids_of(name, "<|im_end|>", "<|endoftext|>"), DAY)


NAMES = ("chatml", "qwen25", "qwen3", "llama3", "gemma", "gemma3", "zephyr", "mistral")


@functools.cache
def chat_template(name, windows=(64, 48, 48), request=REQUEST):
    """Return the template of a format."""
    return ChatTemplate(tokenizer(name), chat_format(name), windows, request)


def rendered(name, *turns, opening=False):
    """Return the tokens of a conversation as the tokenizer encodes its whole text."""
    messages = [Message(role, text) for role, text in turns]
    return tokenizer(name).encode_format(chat_format(name).render(messages, opening=opening))
