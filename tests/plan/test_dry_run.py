"""`pit run --dry-run`: counts follow the graph and the tokenizer that a run loads, and nothing is written."""

import sys
from pathlib import Path

import pytest

from pit.config import ConfigError, FieldError, override
from pit.data.tokenizer import Tokenizer
from pit.plan.dry_run import tables
from pit.plan.memory import held_bytes, kept_bytes, trained_bytes, trained_shapes
from pit.plan.sizes import parameters, rollout_sizes, vocabulary
from pit.recipes.demo import tiny
from pit.run.folder import Run
from pit.run.stage import DECODER
from pit.stages import rl, rl_iterated, sft
from pit.stages.graph import stages_of

sys.path.append(str(Path(__file__).parents[1] / "data"))
import chat_cases as cases


def cells(table, column):
    return [str(cell) for cell in table.columns[column].cells]


def test_every_stage_of_the_run_has_a_row_and_nothing_is_written(tmp_path):
    config = override(tiny(), ["references=own", "refresh.prompts=4"])
    stages, curricula, _, rollouts, memory = tables(config, tmp_path / "run")
    every = [stage.name for stage in stages_of(config)]
    assert [cells(table, 0) for table in (stages, memory)] == [every] * 2
    names = ["rl-policy", "rl-improver-0", "rl-improver-1", "rl-improver-2"]
    assert [cells(table, 0) for table in (curricula, rollouts)] == [names] * 2
    assert cells(memory, 1)[0] == "-"
    assert cells(memory, 1)[every.index("rl-improver-2")] == (
        "start rl-improver-1, anchor sft-improver, reward refresh-gap, writer rl-policy, rewriter rl-improver-1"
    )
    assert not (tmp_path / "run").exists()


def test_parameters_are_counted_with_the_vocabulary_of_the_tokenizer_that_is_loaded(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer = Tokenizer.train_bpe(["some words to learn from"] * 3, 300)
    tokenizer.save(path)
    config = override(tiny(), [f"tokenizer.path={path}"])
    assert vocabulary(config) == tokenizer.vocab_size != config.tokenizer.vocab_size
    expected = parameters(config.policy, tokenizer.vocab_size, DECODER.module)
    assert cells(tables(config, tmp_path)[2], 1)[0] == f"{expected:,}"


def test_prefixes_of_the_improver_hold_a_reference_too():
    config = tiny()
    policy, improver = (rollout_sizes(config, stage) for stage in (rl.POLICY, rl_iterated.IMPROVER_1))
    assert policy.prefix_tokens == 32
    assert improver.prefix_tokens == 64


def test_a_config_that_a_stage_refuses_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(FieldError) as caught:
        tables(override(tiny(), ["rl_policy.algorithm=ppo"]), tmp_path)
    assert (caught.value.path, caught.value.value) == ("rl_policy.algorithm", "ppo")


def test_models_with_adapters_hold_their_base_once():
    sections = ("sft_policy", "reward_quality", "rl_policy")
    settings = [*(f"{section}.adapter.rank=2" for section in sections), "base.dtype=bfloat16"]
    config = override(tiny(), settings)
    # Rank 2, width 16: q, o 2 x 32; k, v 2 x 24; gate, up, down 2 x 48.
    adapters = 2 * 64 + 2 * 48 + 3 * 96
    base = 2 * parameters(config.policy, vocabulary(config), DECODER.module)
    # The anchor, and R_P with its head.
    assert held_bytes(config, rl.POLICY) == base + 4 * (adapters + adapters + 16)
    # Weights, gradient and two moments, and the optimizer's counters.
    assert trained_bytes(config, rl.POLICY) == 4 * 4 * adapters + 2 * 4
    assert sum(shape.size for shape in trained_shapes(config, rl.POLICY).values()) == adapters
    assert held_bytes(config, sft.POLICY) == base


def test_full_models_have_their_gradient_and_the_moments_of_the_optimizer():
    config = override(tiny(), ["sft_policy.optimizer.moments=factored", "sft_policy.optimizer.b1=0"])
    size = parameters(config.policy, vocabulary(config), DECODER.module)
    assert trained_bytes(config, sft.IMPROVER) == 4 * 4 * size + 2 * 4
    # Adafactor factors no axis below 128: one second moment, and two numbers in the place of its factors.
    arrays = len(trained_shapes(config, sft.POLICY))
    assert trained_bytes(config, sft.POLICY) == 4 * (3 * size + 2 * arrays) + 2 * 4
    assert held_bytes(config, sft.POLICY) == 0
    assert held_bytes(config, rl_iterated.IMPROVER_1) == 4 * (3 * size + config.policy.width)
    split = override(config, ["mesh.fsdp=4"])
    assert trained_bytes(split, sft.IMPROVER) == trained_bytes(config, sft.IMPROVER) // 4


def test_a_microbatch_keeps_the_inputs_of_layers_that_are_computed_again():
    def kept(layers, remat, rows=1):
        settings = [f"policy.layers={layers}", f"policy.remat={remat}", f"sft_policy.packing.rows={rows}"]
        config = override(tiny(), settings)
        return kept_bytes(config, sft.POLICY, None), config

    deep, config = kept(8, "full")
    shallow, before = kept(4, "full")
    layer = (parameters(config.policy, 9, DECODER.module) - parameters(before.policy, 9, DECODER.module)) // 4
    tokens = config.sft_policy.packing.row_length
    # Layers in a loop are stacked, and so are their inputs.
    assert deep - shallow == 4 * 4 * (layer + tokens * config.policy.width)
    assert kept(4, "full", rows=3)[0] - kept(4, "full", rows=2)[0] == kept(4, "full", rows=2)[0] - shallow
    every, _ = kept(4, "none")
    # Queries, keys, values, attention's output, and the three of the MLP at the least.
    heads = 2 * config.policy.heads + 2 * config.policy.kv_heads
    least = 4 * 4 * tokens * (heads * config.policy.head_dim + 3 * config.policy.mlp)
    assert every - shallow > least


def test_a_chat_format_comes_on_top_of_the_windows(tmp_path):
    sections = ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge", "refresh")
    roomy = override(tiny(), [f"{section}.packing.row_length=160" for section in sections])
    Run(tmp_path, roomy).adopt(cases.tokenizer("qwen3"), cases.chat_format("qwen3"))
    windows = roomy.windows
    template = cases.chat_template("qwen3", (windows.input, windows.reference, windows.output))
    section, close = roomy.rl_improver_1, template.closings
    prefix = template.longest[0] + len(close.reviewed) + windows.reference + len(close.reference)
    tokens = section.prompts * (prefix + section.samples * (windows.output + 1))
    stages, _, _, rollouts, _ = tables(roomy, tmp_path)
    assert dict(zip(cells(stages, 0), cells(stages, 3), strict=True))["rl-improver-1"] == f"<= {tokens:,}"
    sizes = rollout_sizes(roomy, rl_iterated.IMPROVER_1, template)
    assert sizes.output_tokens == windows.output
    assert prefix <= sizes.prefix_tokens < prefix + 32 * 2
    assert cells(rollouts, 0)
    with pytest.raises(ConfigError, match="of windows and what the chat format adds"):
        tables(override(tiny(), ["sft_improver.packing.row_length=90"]), tmp_path)
