"""A plan of a model from its config.json alone: shape, settings, and no look for weights."""

from pathlib import Path

from pit.cli.options import with_options
from pit.cli.plan import FORMAT_TOKENS, shaped_by
from pit.config import override

SHAPE = Path(__file__).parents[2] / "bench" / "shapes" / "llama-3-8b"


def test_config_json_alone_sizes_a_recipe_that_asks_for_a_model():
    config = with_options(shaped_by("chat", SHAPE), None, None, ["policy.compute_dtype=bfloat16", "mesh.fsdp=16"])
    assert (config.policy.width, config.policy.layers, config.policy.compute_dtype) == (4096, 32, "bfloat16")
    assert config.base.path is None
    assert config.tokenizer.vocab_size == 128256
    # A model of this size trains adapters.
    assert config.sft_policy.adapter is not None
    windows = config.windows
    assert (windows.input, windows.reference, windows.output) == (512, 512, 512)
    assert config.rl_improver_0.packing.row_length >= 3 * 512 + FORMAT_TOKENS
    assert config.mesh.fsdp == 16


def test_recipes_with_sizes_of_their_own_take_the_shape_too():
    config = override(shaped_by("paper", SHAPE), ["policy.remat=full"])
    assert (config.policy.width, config.reward_model.kv_heads, config.policy.remat) == (4096, 8, "full")
    assert config.sft_policy.adapter is None
