"""Recipes that start from a pretrained model: sizes by model and data, and a whole run from one command."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import pytest
from click.testing import CliRunner
from small_model import SHAPE, cases, write_model, write_preferences

from pit.cli import main
from pit.cli.app import cli
from pit.cli.options import make_config
from pit.config import (
    AdapterConfig,
    BaseConfig,
    ConfigError,
    DataConfig,
    TemplateConfig,
    WindowConfig,
    read_config,
    to_dict,
)
from pit.data.chat import ChatTemplate
from pit.data.synthetic import generate
from pit.evaluate.schema import read_results
from pit.model.adapters import trainable_names
from pit.model.decoder import Decoder
from pit.model.params import abstract
from pit.model.peft import save_adapter
from pit.model.pretrained import Pretrained
from pit.model.token_facts import SETTINGS, TEMPLATE, TOKENIZER
from pit.recipes import CHAT_RECIPES, OWN_DATA, chat_model, lengths, recipe
from pit.recipes.lengths import Sizes
from pit.rl.reward import scored_tree
from pit.run.base import chat_of
from pit.run.folder import Run
from pit.stages import reward, sft


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_preferences(tmp_path_factory.mktemp("data") / "pairs.jsonl")


def test_windows_hold_most_texts_and_rows_the_longest_path(model, data):
    pretrained, source = Pretrained.open(model), DataConfig(task=None, path=str(data))
    sizes = lengths.measure(pretrained, source, TemplateConfig())
    # The longest prompts are of three turns, and all texts are short of a step.
    assert sizes.windows.output == sizes.windows.reference == 32
    assert sizes.windows.input % 32 == 0
    longer = lengths.measure(pretrained, source, TemplateConfig(request="Again, and better, please. " * 9 + "Now."))
    assert longer.added > sizes.added
    assert longer.windows == sizes.windows
    assert longer.path == sum(dataclasses.astuple(longer.windows)) + longer.added
    assert longer.row_length >= longer.path
    assert longer.row_length % 128 == 0


def test_a_recipe_sizes_itself_by_the_chat_format_that_adapters_bring(model, data, tmp_path):
    """As those of a base model without one, tuned with TRL."""
    base, lora, adapter = write_model(tmp_path / "base", template=False), tmp_path / "lora", AdapterConfig(rank=1)
    shapes = abstract(Decoder, SHAPE, cases.tokenizer("chatml").vocab_size, adapter)[1]
    params = {name: jnp.zeros(shapes[name].shape) for name in trainable_names(shapes)}
    files = {name: (model / name).read_text() for name in (TOKENIZER, TEMPLATE, SETTINGS)}
    save_adapter(lora, SHAPE, adapter, params, base="some/base", files=files)
    config = make_config("chat", data, None, [], model=str(base), adapter=str(lora))
    assert config.base == BaseConfig(str(base), str(lora))
    whole = make_config("chat", data, None, [], model=str(model))
    assert (config.windows, config.sft_policy) == (whole.windows, whole.sft_policy)
    with pytest.raises(ConfigError, match="the model has no chat template"):
        make_config("chat", data, None, [], model=str(base))


def test_sizes_are_bounded(model, tmp_path):
    text = json.dumps({"prompt": "describe " * 900, "chosen": "lamp " * 900, "rejected": "no"})
    path = tmp_path / "long.jsonl"
    path.write_text(text + "\n")
    sizes = lengths.measure(Pretrained.open(model), DataConfig(task=None, path=str(path)), TemplateConfig())
    assert sizes.windows == WindowConfig(512, 512, 512)
    assert sizes.within(prompt=64, answer=32).windows == WindowConfig(64, 32, 32)
    assert sizes.within(prompt=9_999, answer=9_999) == sizes


def test_large_models_train_adapters_and_small_ones_all_weights(model, monkeypatch):
    pretrained, sizes = Pretrained.open(model), Sizes(WindowConfig(32, 32, 32), 40)
    assert chat_model.chat(pretrained, sizes).sft_policy.adapter is None
    monkeypatch.setattr(chat_model, "FULL_BELOW", 1)
    large = chat_model.chat(pretrained, sizes)
    sections = [name for name in to_dict(large) if name != "base" and hasattr(getattr(large, name), "adapter")]
    assert len(sections) == 12
    assert {getattr(large, name).adapter for name in sections} == {AdapterConfig()}
    assert large.policy == large.reward_model == SHAPE


@pytest.mark.parametrize("name", CHAT_RECIPES)
def test_a_group_holds_all_trees_in_which_samples_are_scored(name, model):
    # Eight leaves of 533 tokens: no row of 640 holds two.
    sizes = Sizes(WindowConfig(224, 128, 128), 53)
    if name == "instruct":
        sizes = sizes.within(prompt=224, answer=96)
    config = CHAT_RECIPES[name](Pretrained.open(model), sizes)
    needed = sizes.rows(scored_tree(4, "symmetric"))
    assert config.rl_improver_0.packing.rows == needed == 8
    assert config.rl_improver_1.packing.rows == config.rl_improver_2.packing.rows == needed
    assert config.rl_policy.packing.rows == config.sft_policy.packing.rows < 8


def test_a_sliding_window_is_told_the_longest_path(model):
    pretrained, sizes = Pretrained.open(model), Sizes(WindowConfig(32, 32, 32), 40)
    assert chat_model.chat(pretrained, sizes).policy.longest_path is None
    shape = dataclasses.replace(pretrained.shape, config=dataclasses.replace(SHAPE, window=256))
    assert chat_model.chat(dataclasses.replace(pretrained, shape=shape), sizes).policy.longest_path == 136


@pytest.mark.parametrize("name", [name for name in CHAT_RECIPES if name not in OWN_DATA])
def test_a_chat_recipe_asks_for_its_model_and_data(name, model, data):
    pretrained = Pretrained.open(model)
    with pytest.raises(ConfigError, match=f"recipe {name}: starts from a pretrained model; .* --model PATH"):
        recipe(name, None, DataConfig(task=None, path=str(data)))
    with pytest.raises(ConfigError, match=f"recipe {name}: sizes itself by the preferences; .* --data PATH"):
        recipe(name, pretrained)
    config = recipe(name, pretrained, DataConfig(task=None, path=str(data)))
    assert (config.name, config.base.path) == (name, str(model))
    assert config.policy == config.reward_model == dataclasses.replace(SHAPE, compute_dtype=config.policy.compute_dtype)


def test_a_recipe_may_bring_its_own_preferences(model, data, monkeypatch):
    monkeypatch.setattr(lengths, "SAMPLED", 60)
    with pytest.raises(ConfigError, match=r"recipe instruct: starts from a pretrained model; .* --model PATH"):
        recipe("instruct")
    pretrained = Pretrained.open(model)
    config = recipe("instruct", pretrained, DataConfig())
    assert config.data == OWN_DATA["instruct"]
    assert config.data.synthetic
    # The window holds the longest prompt, but not every answer: the tokenizer of the test knows few words.
    tokenizer, format = chat_of(pretrained, TemplateConfig())
    chat = ChatTemplate(tokenizer, format, (999, 999, 999), config.template.request)
    sizes = [chat.prompt_size(row.prompt) for row in generate(60, 0, task="instruct")]
    assert config.windows.input - 32 < max(sizes) <= config.windows.input
    assert config.windows.output == 96
    assert config.rl_policy.steps == config.rl_improver_0.steps + config.rl_improver_1.steps
    given = recipe("instruct", pretrained, DataConfig(path=str(data)))
    assert given.windows.input < config.windows.input


def test_any_recipe_starts_from_a_model(model):
    config = recipe("hh", Pretrained.open(model))
    assert (config.base.path, config.policy, config.reward_model) == (str(model), SHAPE, SHAPE)
    assert config.windows == recipe("hh").windows


def test_the_command_prints_a_config_that_starts_the_same_run(model, data, tmp_path):
    words = ["chat", "--model", str(model), "--data", str(data), "--set", "template.request=Once more."]
    printed = CliRunner().invoke(cli, ["config", *words])
    assert printed.exit_code == 0, printed.output
    path = tmp_path / "mine.yaml"
    path.write_text(printed.output)
    config = read_config(path, recipe("tiny"))
    assert (config.data.path, config.base.path) == (str(data), str(model))
    assert config.template.request == "Once more."
    again = CliRunner().invoke(cli, ["config", "--config", str(path)])
    assert again.output == printed.output


SMALL = [
    *(f"{name}.steps=3" for name in ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge")),
    *(
        f"{name}.{field}"
        for name in ("rl_policy", "rl_improver_0", "rl_improver_1")
        for field in ("steps=2", "prompts=4", "samples=2", "evaluate_prompts=4")
    ),
    *(
        f"{name}.adapter.rank=2"
        for name in (
            *("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge", "refresh"),
            *("rl_policy", "rl_improver_0", "rl_improver_1", "rl_improver_2"),
        )
    ),
    "evaluate.prompts=8",
    "evaluate.examples=2",
    "improve.iterations=1",
]
"""Settings of a run with adapters that ends in a minute or two."""


@pytest.mark.slow
def test_one_command_trains_improves_and_reports(model, data, tmp_path, capsys):
    run, settings = tmp_path / "run", [word for setting in SMALL for word in ("--set", setting)]
    main(["run", "chat", "--model", str(model), "--data", str(data), "--out", str(run), *settings])
    results = read_results(run)
    assert {"pretrained", "sft-policy", "rl-improver-1"} <= set(results.perplexity)
    assert (run / "report.html").is_file()
    opened = Run.open(run)
    policy, gap = sft.POLICY.load(opened), reward.GAP.load(opened)
    assert policy.params["embedding"] is gap.params["decoder.embedding"] is opened.base.params["embedding"]
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "describe the lamp, please"}\n')
    main(["improve", "--run", str(run), "--input", str(asked), "--output", str(tmp_path / "improved.jsonl")])
    (line,) = (tmp_path / "improved.jsonl").read_text().splitlines()
    assert len(json.loads(line)["answers"]) == 2
