"""Gemma 1, 2 and 3 (arXiv 2403.08295, 2408.00118, 2503.19786): GELU, norms that scale by 1 + w, scaled embeddings.

Gemma 2 adds norms after both halves of a block, soft caps, and local layers; Gemma 3 has norms of each head's queries
and keys in the place of the caps, and its local layers have a rotary base of their own.
"""

from typing import Any

from pit.config import ModelConfig
from pit.model.config_json import ConfigJson, size_fields
from pit.model.errors import refusal
from pit.model.families.llama import TENSORS
from pit.model.families.qwen import HEAD_NORMS
from pit.model.family import Family, constants
from pit.model.positions_json import GLOBAL, LOCAL, layer_types, read_layers, read_rope, rope_block, write_rope

_GELU = "gelu_pytorch_tanh"
_COMMON = {"activation": "gelu", "norm_offset": True, "embed_scale": True, "tied": True}


def _read_common(file: ConfigJson) -> dict[str, Any]:
    file.require(tie_word_embeddings=True, attention_bias=False)
    file.require_off("use_bidirectional_attention")
    return {
        **file.sizes(),
        # transformers would take 256 where it is absent, and not a share of the width.
        "head_dim": file.integer("head_dim"),
        "norm_eps": file.number("rms_norm_eps", default=1e-6),
    }


def _read(file: ConfigJson) -> dict[str, Any]:
    # "gelu" is what the first releases wrote for the approximation.
    file.choice("hidden_act", {_GELU: "gelu", "gelu": "gelu"}, default=_GELU)
    return {**_read_common(file), **read_rope(file)}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        **size_fields(config),
        **write_rope(config),
        "hidden_act": _GELU,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": True,
        "attention_bias": False,
    }


def _read_capped(file: ConfigJson, *, attention: float | None, final: float | None, every: int) -> dict[str, Any]:
    """Return what Gemma 2 and 3 share; their defaults differ."""
    file.choice("hidden_activation", {_GELU: "gelu"}, default=_GELU)
    window = file.integer("sliding_window", 4096)
    scalar, common = file.number("query_pre_attn_scalar", default=256.0), _read_common(file)
    return {
        **common,
        **read_layers(file, window, lambda layer: (layer + 1) % every != 0),
        # None stands for this scale.
        "query_scale": None if scalar == common["head_dim"] else scalar**-0.5,
        "attention_soft_cap": file.optional_number("attn_logit_softcapping", attention),
        "final_soft_cap": file.optional_number("final_logit_softcapping", final),
    }


def _write_capped(config: ModelConfig) -> dict[str, Any]:
    fields = _write(config)
    fields["hidden_activation"] = fields.pop("hidden_act")
    scale = config.query_scale or config.head_dim**-0.5
    scalar = round(scale**-2)
    if scalar < 1 or scalar**-0.5 != scale:
        rule = "must be the inverse root of a whole number, query_pre_attn_scalar"
        raise refusal("model.query_scale", scale, rule, "train with such a scale to export the model")
    if config.width % config.heads:
        # transformers 5 insists, even where head_dim is given.
        rule = f"model.heads = {config.heads} must divide the width of a Gemma 2 or 3"
        raise refusal("model.width", config.width, rule, "train with such a width to export the model")
    return fields | {
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": config.attention_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        # Where no layer is local, the window of the first Gemma 2.
        "sliding_window": config.window or 4096,
        "layer_types": layer_types(config),
    }


def _read_2(file: ConfigJson) -> dict[str, Any]:
    return {**_read_capped(file, attention=50.0, final=30.0, every=2), **read_rope(file)}


def _read_3(file: ConfigJson) -> dict[str, Any]:
    every = file.integer("sliding_window_pattern", 6)
    fields = _read_capped(file, attention=None, final=None, every=every)
    local, whole = _rope_blocks(file)
    fields |= read_rope(whole, theta=1_000_000.0)
    of_local = read_rope(local, theta=10_000.0)
    if of_local["rope_scaling"] is not None:
        rule = "only unscaled rotary positions are supported in local layers"
        raise file.refusal(
            f"rope_parameters.{LOCAL}", local.values["rope_parameters"], rule, "choose another checkpoint"
        )
    return fields | {"local_rope_theta": of_local["rope_theta"] if fields["window"] is not None else None}


def _rope_blocks(file: ConfigJson) -> tuple[ConfigJson, ConfigJson]:
    """Return the rotary fields of local and of global layers, each as a file of another family has them."""
    both = file.values.get("rope_parameters") or {}
    names = ("rope_theta", "rope_scaling", "max_position_embeddings")
    whole = {name: file.values[name] for name in names if name in file.values}
    local = {"rope_theta": file.values["rope_local_base_freq"]} if "rope_local_base_freq" in file.values else {}
    if not isinstance(both, dict) or not set(both) <= {LOCAL, GLOBAL}:
        rule = f"must have an object for {LOCAL} and one for {GLOBAL}"
        raise file.refusal("rope_parameters", both, rule, "correct it")
    return (
        ConfigJson(file.path, local | {"rope_parameters": both.get(LOCAL)}),
        ConfigJson(file.path, whole | {"rope_parameters": both.get(GLOBAL)}),
    )


def _write_3(config: ModelConfig) -> dict[str, Any]:
    fields = _write_capped(config)
    if config.window is None:
        raise refusal("model.window", None, "a Gemma 3 has local layers", "export the model as another family")
    if config.local_rope_theta is None:
        rule = "local layers of a Gemma 3 have a rotary base of their own"
        raise refusal("model.local_rope_theta", None, rule, "export the model as another family")
    theta, scaling = fields.pop("rope_theta"), fields.pop("rope_scaling")
    # Version 4 reads the first three, version 5 the last.
    return fields | {
        "rope_theta": theta,
        "rope_local_base_freq": config.local_rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            GLOBAL: {"rope_type": "default", "rope_theta": theta} | (rope_block(config.rope_scaling) or {}),
            LOCAL: {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
    }


_NORMS = {
    "layers.{}.post_attention_norm.scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers.{}.mlp_norm.scale": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers.{}.post_mlp_norm.scale": "model.layers.{}.post_feedforward_layernorm.weight",
}
_CAPPED = (
    "rope_scaling",
    "window",
    "window_from",
    "global_every",
    "query_scale",
    "attention_soft_cap",
    "final_soft_cap",
)

GEMMA = Family(
    name="Gemma",
    model_type="gemma",
    constants=constants("rope_scaling", **_COMMON),
    read=_read,
    write=_write,
    tensors=TENSORS,
)

GEMMA_2 = Family(
    name="Gemma2",
    model_type="gemma2",
    constants=constants(*_CAPPED, **_COMMON, post_norm=True),
    read=_read_2,
    write=_write_capped,
    tensors=TENSORS | _NORMS,
)

GEMMA_3 = Family(
    name="Gemma3",
    model_type="gemma3_text",
    constants=constants(*_CAPPED, "local_rope_theta", **_COMMON, post_norm=True, qk_norm=True),
    read=_read_3,
    write=_write_3,
    tensors=TENSORS | _NORMS | HEAD_NORMS,
    reward_name="Gemma3Text",
)
