"""The config.json of a Llama checkpoint, in the form of Hugging Face's transformers, to and from `ModelConfig`.

What a decoder here cannot compute, or Llama cannot say, is refused by name; defaults are those of its `LlamaConfig`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pit.config import ConfigError, ModelConfig
from pit.errors import PitError

Architecture = Literal["LlamaForCausalLM", "LlamaForSequenceClassification"]
CAUSAL: Architecture = "LlamaForCausalLM"
REWARD: Architecture = "LlamaForSequenceClassification"

# transformers' "gelu" is the exact one; ours is the approximation by tanh.
_ACTIVATIONS: dict[str, Literal["silu", "gelu"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}
_PLAIN: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
_PLAIN_ROPE = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
# Fields of ModelConfig that change what is computed and have no counterpart in Llama.
_UNKNOWN_TO_LLAMA = {
    "norm_offset": False,
    "embed_scale": False,
    "post_norm": False,
    "rotary_fraction": 1.0,
    "learned_positions": 0,
    "attention_soft_cap": None,
    "final_soft_cap": None,
}


class ModelFileError(PitError):
    """A model folder, or a request to write one, breaks a rule; the message names the thing, the rule, the remedy."""


class Shape(NamedTuple):
    """What a config.json says: the decoder's shape, the rows of its embedding, and the kind of model."""

    config: ModelConfig
    vocab_size: int
    architecture: Architecture


def refusal(name: str, value: object, rule: str, remedy: str) -> ModelFileError:
    """The error for a value that breaks a rule."""
    return ModelFileError(f"{name} = {value!r}: {rule}; {remedy}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelFileError: no such file, or it holds something else.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; name a folder as transformers' save_pretrained writes it")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelFileError(f"{path}: is no JSON ({error}); fetch the file again") from error
    if not isinstance(values, dict):
        raise ModelFileError(f"{path}: holds a JSON {type(values).__name__}, not an object; fetch the file again")
    return values


def read_config(path: Path) -> Shape:
    """The shape that a config.json describes; `compute_dtype`, `remat` and `matched_heads` keep their defaults.

    A reward model counts as tied, because it has no output table.

    Raises:
        ModelFileError: a field is missing, of the wrong type, or asks for what the decoder does not compute.
    """
    values = read_json(path)
    architecture = _architecture(values, path)
    for name, plain in _PLAIN.items():
        if values.get(name, plain) != plain:
            raise refusal(f"{path}: {name}", values[name], f"only {plain!r} is supported", "use a plain Llama")
    activation = values.get("hidden_act", "silu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        rule = f"must be one of {', '.join(_ACTIVATIONS)}"
        raise refusal(f"{path}: hidden_act", activation, rule, "choose another checkpoint")
    width, heads = _integer(values, "hidden_size", path), _integer(values, "num_attention_heads", path)
    if values.get("head_dim") is None and width % heads:
        rule = f"must divide hidden_size = {width} where head_dim is not given"
        raise refusal(f"{path}: num_attention_heads", heads, rule, "give head_dim")
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise refusal(f"{path}: tie_word_embeddings", tied, "must be true or false", "correct it")
    try:
        config = ModelConfig(
            width=width,
            layers=_integer(values, "num_hidden_layers", path),
            heads=heads,
            kv_heads=_integer(values, "num_key_value_heads", path, default=heads),
            head_dim=_integer(values, "head_dim", path, default=width // heads),
            mlp=_integer(values, "intermediate_size", path),
            norm_eps=_number(values, "rms_norm_eps", path, default=1e-6),
            rope_theta=_rope_theta(values, path),
            tied=tied or architecture == REWARD,
            activation=_ACTIVATIONS[activation],
        )
    except ConfigError as error:
        raise ModelFileError(f"{path}: {error}") from error
    return Shape(config, _integer(values, "vocab_size", path), architecture)


def _architecture(values: Mapping[str, Any], path: Path) -> Architecture:
    named = values.get("architectures")
    for known in (CAUSAL, REWARD):
        if named == [known]:
            return known
    rule = f"must be [{CAUSAL!r}] or [{REWARD!r}]"
    raise refusal(f"{path}: architectures", named, rule, "choose a checkpoint of one of these two")


def _integer(values: Mapping[str, Any], name: str, path: Path, default: int | None = None) -> int:
    value = default if values.get(name) is None else values[name]
    if value is None:
        raise ModelFileError(f"{path}: {name} is missing: it fixes the shape of the model; add it")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refusal(f"{path}: {name}", value, "must be a positive integer", "correct it")
    return value


def _number(values: Mapping[str, Any], name: str, path: Path, default: float) -> float:
    value = values.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise refusal(f"{path}: {name}", value, "must be a positive number", "correct it")
    return float(value)


def _rope_theta(values: Mapping[str, Any], path: Path) -> float:
    """Base of the rotary frequencies: `rope_theta` up to transformers 4, `rope_parameters.rope_theta` since 5."""
    given = {"rope_theta": _number(values, "rope_theta", path, default=10_000.0)} if "rope_theta" in values else {}
    for section in ("rope_parameters", "rope_scaling"):
        block = values.get(section)
        if block is None:
            continue
        if not isinstance(block, dict):
            raise refusal(f"{path}: {section}", block, "must be null or an object", "correct it")
        for name, value in block.items():
            if name == "rope_theta":
                given[f"{section}.{name}"] = _number(block, name, path, default=10_000.0)
            elif name not in _PLAIN_ROPE or value != _PLAIN_ROPE[name]:
                rule = "only unscaled rotary positions (rope_type 'default') are supported"
                raise refusal(f"{path}: {section}.{name}", value, rule, "choose a checkpoint without rope scaling")
    if len(set(given.values())) > 1:
        raise refusal(f"{path}: rope_theta", given, "is given twice and differs", "keep the right one")
    return next(iter(given.values()), 10_000.0)


def llama_fields(
    shape: Shape, *, eos_ids: Sequence[int], pad_id: int | None, dtype: str, max_positions: int
) -> dict[str, Any]:
    """The config.json of a model, as plain values that transformers 4 and 5 both read.

    Raises:
        ModelFileError: Llama cannot express the config, or a token id does not fit.
    """
    config, vocab_size, architecture = shape
    _refuse_inexpressible(config)
    ids = {f"eos_ids[{i}]": each for i, each in enumerate(eos_ids)} | ({} if pad_id is None else {"pad_id": pad_id})
    for name, each in ids.items():
        if not 0 <= each < vocab_size:
            raise refusal(name, each, f"must be within the vocabulary of {vocab_size} rows", "correct it")
    if max_positions < 1:
        raise refusal("max_positions", max_positions, "must be positive", "give the longest input in tokens")
    reward = architecture == REWARD
    if reward and (pad_id is None or pad_id in eos_ids):
        rule = f"{REWARD} scores the last token that is not padding, so it needs one that ends no answer"
        raise refusal("pad_id", pad_id, rule, f"give an id outside eos_ids = {list(eos_ids)}")
    fields: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp,
        "hidden_act": "silu" if config.activation == "silu" else "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied and not reward,
        "max_position_embeddings": max_positions,
        # Said even where absent: LlamaConfig would take 1 and 2.
        "bos_token_id": None,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids) or None,
        "pad_token_id": pad_id,
        "torch_dtype": dtype,
    }
    return fields | ({"id2label": {"0": "score"}, "label2id": {"score": 0}} if reward else {})


def _refuse_inexpressible(config: ModelConfig) -> None:
    remedy = "train with the Llama-like default of this field to export the model"
    for name, plain in _UNKNOWN_TO_LLAMA.items():
        if getattr(config, name) != plain:
            raise refusal(f"model.{name}", getattr(config, name), f"Llama has only {plain!r}", remedy)
    if config.query_scale not in (None, config.head_dim**-0.5):
        rule = f"Llama scales queries by head_dim**-0.5 = {config.head_dim**-0.5}"
        raise refusal("model.query_scale", config.query_scale, rule, remedy)
    if config.width % config.heads:
        # transformers 5 insists, even where head_dim is given.
        rule = f"model.heads = {config.heads} must divide the width of a Llama"
        raise refusal("model.width", config.width, rule, "train with such a width to export the model")
