"""A plan of a model from its config.json alone: shape, settings, and no look for weights."""

import json

from pit.cli.options import with_options
from pit.cli.plan import FORMAT_TOKENS, shaped_by
from pit.config import override

FIELDS = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
"""Llama-3-8B."""


def test_config_json_alone_sizes_a_recipe_that_asks_for_a_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    config = with_options(shaped_by("chat", tmp_path), None, None, ["policy.compute_dtype=bfloat16", "mesh.fsdp=16"])
    assert (config.policy.width, config.policy.layers, config.policy.compute_dtype) == (4096, 32, "bfloat16")
    assert config.base.path is None
    assert config.tokenizer.vocab_size == 128256
    # A model of this size trains adapters.
    assert config.sft_policy.adapter is not None
    windows = config.windows
    assert (windows.input, windows.reference, windows.output) == (512, 512, 512)
    assert config.rl_improver_0.packing.row_length >= 3 * 512 + FORMAT_TOKENS
    assert config.mesh.fsdp == 16


def test_recipes_with_sizes_of_their_own_take_the_shape_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS))
    config = override(shaped_by("paper", tmp_path), ["policy.remat=full"])
    assert (config.policy.width, config.reward_model.kv_heads, config.policy.remat) == (4096, 8, "full")
    assert config.sft_policy.adapter is None
