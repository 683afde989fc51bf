"""`pit run --dry-run`: counts follow the graph and the tokenizer that a run loads, and nothing is written."""

import pytest

from pit.config import FieldError, override
from pit.data.tokenizer import Tokenizer
from pit.plan import parameters, rollout_sizes, tables, vocabulary
from pit.recipes.demo import tiny
from pit.run.stage import DECODER
from pit.stages import rl, rl_iterated
from pit.stages.graph import stages_of


def cells(table, column):
    return [str(cell) for cell in table.columns[column].cells]


def test_every_stage_of_the_run_has_a_row_and_nothing_is_written(tmp_path):
    config = override(tiny(), ["references=own", "refresh.prompts=4"])
    stages, curricula, _, rollouts, resident = tables(config, tmp_path / "run")
    assert cells(stages, 0) == [stage.name for stage in stages_of(config)]
    names = ["rl-policy", "rl-improver-0", "rl-improver-1", "rl-improver-2"]
    assert [cells(table, 0) for table in (curricula, rollouts, resident)] == [names] * 3
    assert cells(resident, 1)[-1] == (
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


def test_models_with_adapters_hold_their_base_once(tmp_path):
    sections = ("sft_policy", "reward_quality", "rl_policy")
    settings = [*(f"{section}.adapter.rank=2" for section in sections), "base.dtype=bfloat16"]
    config = override(tiny(), settings)
    # Rank 2, width 16: q, o 2 x 32; k, v 2 x 24; gate, up, down 2 x 48.
    adapters = 2 * 64 + 2 * 48 + 3 * 96
    base = 2 * parameters(config.policy, vocabulary(config), DECODER.module)
    # Weights, gradient and two moments of the policy, the anchor, and R_P with its head.
    own = 4 * (4 * adapters + adapters + adapters + 16)
    assert cells(tables(config, tmp_path)[4], 2)[0] == f"{(base + own) / 2**20:.2f} MiB"
