"""Qwen 2 and 2.5 (arXiv 2407.10671): a Llama with biases of queries, keys and values; Qwen 3 normalises heads instead.

Their last layers may be local (`use_sliding_window`).
"""

from typing import Any

from pit.config import ModelConfig
from pit.model.config_json import ConfigJson
from pit.model.families.llama import TENSORS, read_common, write_common
from pit.model.family import Family, constants
from pit.model.positions_json import layer_types, read_layers

_FREE = ("rope_scaling", "window", "window_from", "global_every")


def _read(file: ConfigJson) -> dict[str, Any]:
    file.require(attention_bias=False)
    window = None
    if file.boolean("use_sliding_window", default=False) and file.values.get("sliding_window", 4096) is not None:
        window = file.integer("sliding_window", 4096)
    first = file.integer("max_window_layers", 28) if file.values.get("max_window_layers") != 0 else 0
    return {**read_common(file), **read_layers(file, window, lambda layer: layer >= first)}


def _read_3(file: ConfigJson) -> dict[str, Any]:
    # transformers takes 128 where it is absent, and not a share of the width.
    file.integer("head_dim")
    return _read(file)


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config) | {
        "attention_bias": False,
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "layer_types": layer_types(config),
    }


_TENSORS_2 = TENSORS | {
    f"layers.{{}}.attention.{x}_bias": f"model.layers.{{}}.self_attn.{x}_proj.bias" for x in ("q", "k", "v")
}

HEAD_NORMS = {
    f"layers.{{}}.attention.{x}_norm.scale": f"model.layers.{{}}.self_attn.{x}_norm.weight" for x in ("q", "k")
}
"""Names of the norms of each head's queries and keys."""

QWEN_2 = Family(
    name="Qwen2",
    model_type="qwen2",
    constants=constants(*_FREE, qkv_bias=True),
    read=_read,
    write=_write,
    tensors=_TENSORS_2,
)

QWEN_3 = Family(
    name="Qwen3",
    model_type="qwen3",
    constants=constants(*_FREE, qk_norm=True),
    read=_read_3,
    write=_write,
    tensors=TENSORS | HEAD_NORMS,
)
