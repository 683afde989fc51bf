"""Llama (arXiv 2302.13971): RMS norms, rotary positions, grouped queries, and a gated MLP without biases.

SmolLM 2 and many others are Llamas. Llama 3.1 (arXiv 2407.21783) scales its rotary frequencies. Fields that a
config.json leaves out have the defaults of transformers' `LlamaConfig`.
"""

from typing import Any

from pit.config import ModelConfig
from pit.model.config_json import ConfigJson, size_fields
from pit.model.errors import refusal
from pit.model.family import Family, constants
from pit.model.positions_json import read_rope, write_rope

# transformers' "gelu" is the exact one; ours is the approximation by tanh.
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu"}


def read_common(file: ConfigJson) -> dict[str, Any]:
    """Return the fields that Llama and its nearest relatives share."""
    file.require(partial_rotary_factor=1.0)
    return {
        **file.sizes(),
        **read_rope(file),
        "activation": file.choice("hidden_act", _ACTIVATIONS, default="silu"),
        "norm_eps": file.number("rms_norm_eps", default=1e-6),
        "tied": file.boolean("tie_word_embeddings", default=False),
    }


def write_common(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of a config.json that `read_common` reads."""
    return {
        **size_fields(config),
        **write_rope(config),
        "hidden_act": "silu" if config.activation == "silu" else "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


def _read(file: ConfigJson) -> dict[str, Any]:
    file.require(attention_bias=False, mlp_bias=False)
    return read_common(file)


def _write(config: ModelConfig) -> dict[str, Any]:
    if config.width % config.heads:
        # transformers 5 insists, even where head_dim is given.
        rule = f"model.heads = {config.heads} must divide the width of a Llama"
        raise refusal("model.width", config.width, rule, "train with such a width to export the model")
    return write_common(config) | {"attention_bias": False, "mlp_bias": False}


TENSORS = {
    "embedding": "model.embed_tokens.weight",
    "layers.{}.attention_norm.scale": "model.layers.{}.input_layernorm.weight",
    "layers.{}.attention.q": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attention.k": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attention.v": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attention.o": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.mlp_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.mlp.gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers.{}.mlp.up": "model.layers.{}.mlp.up_proj.weight",
    "layers.{}.mlp.down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm.scale": "model.norm.weight",
    "output": "lm_head.weight",
}
"""Names that most families since have kept."""

LLAMA = Family(
    name="Llama",
    model_type="llama",
    constants=constants("rope_scaling"),
    read=_read,
    write=_write,
    tensors=TENSORS,
)
