"""A GGUF model as the source of a pretrained model: metadata as a config.json, tensors by the names of transformers.

Quantised tensors are dequantised: what is loaded is the rounded model, in full precision. llama.cpp's converter
permutes the rows of a Llama's queries and keys, and adds 1 to the norms of a Gemma; both are undone.
"""

import mmap
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pit.model.config_json import ConfigJson
from pit.model.errors import ModelFileError, refusal
from pit.model.families.gemma import GEMMA, GEMMA_2, GEMMA_3
from pit.model.families.llama import LLAMA
from pit.model.families.qwen import QWEN_2, QWEN_3
from pit.model.family import Family
from pit.model.gguf_format import Header, Place, map_file, read_header
from pit.model.gguf_tokenizer import read_token_facts, read_tokenizer
from pit.model.tensor_files import Tensor
from pit.model.token_facts import TokenFacts

_FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "qwen2": QWEN_2,
    "qwen3": QWEN_3,
    "gemma": GEMMA,
    "gemma2": GEMMA_2,
    "gemma3": GEMMA_3,
}
"""Family of each `general.architecture`."""

_SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "feed_forward_length": "intermediate_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base_swa": "rope_local_base_freq",
}
"""Name in config.json of each field of the metadata."""

_CHECKED = ("vocab_size", "rope.dimension_count", "attention.value_length", "tensor_data_layout")
_SCALING = ("rope.scaling.type", "rope.scaling.factor")
_NEUTRAL = ("rope.scaling.original_context_length", "rope.scaling.finetuned", "expert_count", "expert_used_count")
"""Further fields that a file may have; experts are counted as 0 where there are none."""

_FREQUENCIES = "rope_freqs.weight"
"""Divisors of the rotary frequencies; Llama 3 has them."""

_NAMES = {
    "embedding": "token_embd.weight",
    "layers.{}.attention_norm.scale": "blk.{}.attn_norm.weight",
    "layers.{}.attention.q": "blk.{}.attn_q.weight",
    "layers.{}.attention.k": "blk.{}.attn_k.weight",
    "layers.{}.attention.v": "blk.{}.attn_v.weight",
    "layers.{}.attention.q_bias": "blk.{}.attn_q.bias",
    "layers.{}.attention.k_bias": "blk.{}.attn_k.bias",
    "layers.{}.attention.v_bias": "blk.{}.attn_v.bias",
    "layers.{}.attention.q_norm.scale": "blk.{}.attn_q_norm.weight",
    "layers.{}.attention.k_norm.scale": "blk.{}.attn_k_norm.weight",
    "layers.{}.attention.o": "blk.{}.attn_output.weight",
    "layers.{}.mlp_norm.scale": "blk.{}.ffn_norm.weight",
    "layers.{}.mlp.gate": "blk.{}.ffn_gate.weight",
    "layers.{}.mlp.up": "blk.{}.ffn_up.weight",
    "layers.{}.mlp.down": "blk.{}.ffn_down.weight",
    "layers.{}.post_attention_norm.scale": "blk.{}.post_attention_norm.weight",
    "layers.{}.post_mlp_norm.scale": "blk.{}.post_ffw_norm.weight",
    "final_norm.scale": "output_norm.weight",
    "output": "output.weight",
}
"""Name in a GGUF file of each parameter in `pit.model.layout.PARAMETERS`."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of an open GGUF file, as transformers keeps it."""

    place: Place
    file: mmap.mmap
    undo: Callable[[np.ndarray], np.ndarray]

    @property
    def path(self) -> Path:
        """File that holds it."""
        return self.place.path

    @property
    def dtype(self) -> str:
        """The dtype that `read` returns."""
        return self.place.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, outermost axis first."""
        return self.place.shape

    def read(self) -> np.ndarray:
        """Return its data, dequantised to float32 where it is quantised."""
        return self.undo(self.place.read(self.file))


@dataclass(frozen=True)
class GgufFile:
    """A GGUF model, in one file or in parts, of which `path` is the first."""

    path: Path
    config: ConfigJson
    header: Header
    family: Family

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read the header of the model at a path.

        Raises:
            ModelFileError: a file is missing or damaged, no family has its architecture, or a field of its metadata
                may change the result and is not known here.
        """
        if not path.is_file():
            raise ModelFileError(f"{path}: no such file; name a GGUF file")
        header = read_header(path)
        architecture = header.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in _FAMILIES:
            rule = f"must be one of {', '.join(_FAMILIES)}"
            raise refusal(f"{path}: general.architecture", architecture, rule, "choose a model of one of them")
        config = ConfigJson(path, _config(path, header, architecture))
        return cls(path, config, header, _FAMILIES[architecture])

    @property
    def dequantised(self) -> tuple[str, ...]:
        """Types of quantised tensors in the model, in the words of ggml."""
        return tuple(sorted({place.kind for place in self.header.tensors.values() if place.quantised}))

    def files(self) -> dict[str, Path]:
        """Return the files."""
        if len(self.header.paths) == 1:
            return {"gguf": self.path}
        return {f"gguf/{number:05d}": path for number, path in enumerate(self.header.paths)}

    def token_facts(self, vocab_size: int) -> TokenFacts:
        """Return the facts about the tokens."""
        return read_token_facts(self.path, self.header.metadata, vocab_size)

    def tokenizer(self) -> bytes:
        """Return the content of a tokenizer.json, made from the metadata."""
        return read_tokenizer(self.path, self.header.metadata)

    def tensors(self, stack: ExitStack) -> Mapping[str, Tensor]:
        """Return all tensors by the names of transformers; they can be read as long as the stack is open."""
        files = {path: map_file(path, stack) for path in self.header.paths}
        names = {}
        for name, file_name in self.family.tensors.items():
            for layer in range(self.config.integer("num_hidden_layers") if "{}" in name else 1):
                names[_NAMES[name].format(layer)] = (name, file_name.format(layer))
        tensors: dict[str, Tensor] = {}
        for name, place in self.header.tensors.items():
            parameter, file_name = names.get(name, (name, name))
            if name != _FREQUENCIES:
                tensors[file_name] = GgufTensor(place, files[place.path], self._undo(parameter))
        return tensors

    def _undo(self, parameter: str) -> Callable[[np.ndarray], np.ndarray]:
        """Return what undoes the change that llama.cpp's converter makes to a parameter."""
        if self.family is LLAMA and parameter.endswith(("attention.q", "attention.k")):
            kind = "num_attention_heads" if parameter.endswith("q") else "num_key_value_heads"
            heads = self.config.integer(kind, self.config.integer("num_attention_heads"))
            return lambda value: split_halves(value, heads)
        if self.family in (GEMMA, GEMMA_2, GEMMA_3) and parameter.endswith(".scale"):
            return lambda value: value - value.dtype.type(1)
        return lambda value: value


def split_halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of queries or keys whose rotary pairs are neighbours with the pairs in the two halves of a head.

    >>> split_halves(np.arange(8)[:, None], 2)[:, 0].tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    rows, width = value.shape
    return value.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def _config(path: Path, header: Header, architecture: str) -> dict[str, Any]:
    """Return the metadata as a config.json of the family."""
    prefix, family = f"{architecture}.", _FAMILIES[architecture]
    given = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    for key, value in given.items():
        known = key in _SIZES or key in _CHECKED or key in _SCALING or key in _NEUTRAL
        if not known or (key.startswith("expert") and value):
            rule = "may change the result, and is not supported"
            raise refusal(f"{path}: {prefix}{key}", value, rule, "choose a model without it")
    fields = {name: given[key] for key, name in _SIZES.items() if key in given}
    if "head_dim" not in fields and "rope.dimension_count" in given:
        fields["head_dim"] = given["rope.dimension_count"]
    embedding = header.tensors.get(_NAMES["embedding"])
    fields |= {
        "architectures": [family.architecture(reward=False)],
        "vocab_size": embedding.shape[0] if embedding else None,
        "tie_word_embeddings": _NAMES["output"] not in header.tensors,
    }
    if family is LLAMA and "sliding_window" in fields:
        raise refusal(
            f"{path}: {prefix}attention.sliding_window", fields["sliding_window"], "a Llama has none", "drop it"
        )
    config = ConfigJson(path, fields)
    head_dim = config.sizes()["head_dim"]
    for key in ("rope.dimension_count", "attention.value_length"):
        if given.get(key, head_dim) != head_dim:
            raise refusal(
                f"{path}: {prefix}{key}", given[key], f"must be {head_dim}, the size of a head", "choose another"
            )
    if family in (GEMMA_2, GEMMA_3):
        fields |= _query_scalar(config, family) | {"final_logit_softcapping": fields.get("final_logit_softcapping")}
        fields["attn_logit_softcapping"] = fields.get("attn_logit_softcapping")
    return fields | {"rope_scaling": _scaling(path, given, prefix) or _llama3(path, header, config)}


def _query_scalar(config: ConfigJson, family: Family) -> dict[str, Any]:
    """Return Gemma's `query_pre_attn_scalar`, which GGUF leaves out: it differs in the models of 27 billion alone."""
    largest = config.integer("num_hidden_layers") == (46 if family is GEMMA_2 else 62)
    shared = config.integer("hidden_size") // config.integer("num_attention_heads")
    return {"query_pre_attn_scalar": shared if largest else config.integer("head_dim")}


def _scaling(path: Path, given: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    kind = given.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        rule = "must be none or linear"
        raise refusal(f"{path}: {prefix}rope.scaling.type", kind, rule, "choose a model with one of them")
    return {"rope_type": "linear", "factor": given.get("rope.scaling.factor")}


def _llama3(path: Path, header: Header, config: ConfigJson) -> dict[str, Any] | None:
    """Return Llama 3's scaling of rotary frequencies, of which a GGUF holds the divisors alone.

    All models of Meta have the same turns and original length, and differ in the factor.
    """
    place = header.tensors.get(_FREQUENCIES)
    if place is None:
        return None
    with ExitStack() as stack:
        divisors = np.array(place.read(map_file(place.path, stack)), np.float64)
    factor, low, high, original = float(divisors.max()), 1.0, 4.0, 8192
    half = config.sizes()["head_dim"] // 2
    rule = f"must be the divisors of Llama 3 ({low:g} to {high:g} turns in {original} tokens)"
    if not (np.isfinite(divisors).all() and factor >= 1):
        raise refusal(f"{path}: tensor {_FREQUENCIES!r}", divisors.tolist(), rule, "choose the model's safetensors")
    frequency = config.number("rope_theta", 10_000.0) ** (-np.arange(half) / half)
    kept = np.clip((frequency * original / (2 * np.pi) - low) / (high - low), 0, 1)
    expected = 1 / (kept + (1 - kept) / factor)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise refusal(f"{path}: tensor {_FREQUENCIES!r}", divisors.tolist(), rule, "choose the model's safetensors")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
