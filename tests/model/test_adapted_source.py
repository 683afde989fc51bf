"""Adapters as a start: merged into the model that they name, or that is named with them, as it is read."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest
from click.testing import CliRunner

from pit.cli.app import cli
from pit.config import AdapterConfig, BaseConfig, ConfigError, MeshConfig
from pit.model.adapters import merged, trainable_names
from pit.model.decoder import Decoder
from pit.model.errors import ModelFileError
from pit.model.heads import RewardModel
from pit.model.params import abstract
from pit.model.peft import CONFIG, save_adapter
from pit.model.pretrained import Pretrained, save_pretrained
from pit.model.sharding import make_mesh
from pit.recipes.demo import tiny
from pit.run.base import digest_of_base, load_base
from pit.seeds import Seed

SHAPE = dataclasses.replace(twins.LLAMA, tied=True)
ADAPTER = AdapterConfig(rank=2, alpha=6.0, targets=r".*\.(q|o|up|down)_proj")


def weights(kind, config, adapter=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = abstract(kind, config, twins.VOCAB, adapter)[1]
    return {name: jnp.asarray(rng.normal(size=place.shape), jnp.float32) for name, place in sorted(shapes.items())}


PARAMS = weights(Decoder, SHAPE, ADAPTER)
TRAINED = {name: PARAMS[name] for name in trainable_names(PARAMS)}


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    whole = {name: value for name, value in PARAMS.items() if name not in TRAINED}
    save_pretrained(folder, SHAPE, whole, twins.VOCAB, eos_ids=[3, 2], chat_template="of the base")
    return folder


@pytest.fixture
def lora(tmp_path, base):
    save_adapter(tmp_path / "lora", SHAPE, ADAPTER, TRAINED, base=str(base))
    return tmp_path / "lora"


def test_adapters_are_merged_into_the_base(base, lora):
    expected, mesh = merged(PARAMS, ADAPTER), make_mesh(MeshConfig())
    for opened in (Pretrained.open(lora), Pretrained.open(base, lora)):
        assert opened.adapted
        assert opened.config == SHAPE
        loaded = opened.load(mesh).params
        assert loaded.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(loaded[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    plain = Pretrained.open(base)
    assert not plain.adapted
    np.testing.assert_array_equal(plain.load(mesh).params["layers.0.mlp.up"], PARAMS["layers.0.mlp.up"])


def test_a_run_names_what_it_was_given(base, lora):
    assert Pretrained.open(lora).path == lora
    assert Pretrained.open(base, lora).path == base


def test_adapters_of_an_adapted_model_are_merged_too_and_the_model_under_both_is_known(base, lora, tmp_path):
    more = AdapterConfig(rank=1, targets=r".*\.k_proj")
    params = weights(Decoder, SHAPE, more, seed=1)
    save_adapter(tmp_path / "more", SHAPE, more, {name: params[name] for name in trainable_names(params)})
    opened = Pretrained.open(lora, tmp_path / "more")
    assert [source.folder.name for source in opened.adapted] == ["more", "lora"]
    assert opened.unadapted == Pretrained.open(base).unadapted == base
    over = {name: params[name] for name in trainable_names(params)}
    expected = merged({**merged(PARAMS, ADAPTER), **over}, more)
    for name, value in opened.load(make_mesh(MeshConfig())).params.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_digest_depends_on_both(base, lora, tmp_path):
    other = {name: value + 1 for name, value in TRAINED.items()}
    save_adapter(tmp_path / "other", SHAPE, ADAPTER, other, base=str(base))
    opened = [Pretrained.open(base), Pretrained.open(base, lora), Pretrained.open(base, tmp_path / "other")]
    assert len({each.digest for each in opened}) == 3
    assert Pretrained.open(lora).digest == opened[1].digest


def test_a_run_starts_from_the_adapted_base(base, lora):
    config, mesh, seed = tiny(), make_mesh(MeshConfig()), Seed((0,))
    plain = dataclasses.replace(config, policy=SHAPE, base=BaseConfig(path=str(base)))
    adapted = dataclasses.replace(plain, base=BaseConfig(path=str(base), adapter=str(lora)))
    assert digest_of_base(plain, twins.VOCAB, seed) != digest_of_base(adapted, twins.VOCAB, seed)
    loaded = load_base(adapted, twins.VOCAB, seed, mesh).params["layers.1.mlp.down"]
    np.testing.assert_allclose(loaded, merged(PARAMS, ADAPTER)["layers.1.mlp.down"], rtol=1e-5, atol=1e-5)


def test_tokens_are_those_of_the_adapters_where_they_have_a_tokenizer(base, lora, tmp_path):
    opened = Pretrained.open(lora)
    assert (opened.chat_template, opened.eos_ids) == ("of the base", (3, 2))
    from pit.data.tokenizer import Tokenizer

    (lora / "chat_template.jinja").write_text("of the adapters")
    assert Pretrained.open(lora).chat_template == "of the base"
    (lora / "tokenizer.json").write_text(Tokenizer.train_bpe(["red"], 270).to_json())
    assert (Pretrained.open(lora).chat_template, Pretrained.open(lora).eos_ids) == ("of the adapters", (3, 2))
    assert Pretrained.open(lora).tokenizer() == (lora / "tokenizer.json").read_bytes()
    (lora / "generation_config.json").write_text('{"eos_token_id": [5]}')
    assert Pretrained.open(lora).eos_ids == (5,)


def rename(folder, name):
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))


@pytest.mark.parametrize("name", [None, "/no/such/folder", "name"])
def test_a_base_that_is_nowhere_is_refused(name, base, lora):
    rename(lora, name)
    with pytest.raises(
        ModelFileError, match=r"is neither a folder here nor OWNER/NAME on a hub; name both: --model BASE"
    ):
        Pretrained.open(lora)
    assert Pretrained.open(base, lora).adapted


def test_a_base_on_a_hub_is_fetched(base, lora, monkeypatch):
    from pit.model import pretrained

    rename(lora, "owner/name")
    monkeypatch.setattr(pretrained, "fetch", {"hf:owner/name": base}.__getitem__)
    assert Pretrained.open(lora).digest == Pretrained.open(base, lora).digest


def test_adapters_of_another_model_are_refused(base, tmp_path):
    wide = dataclasses.replace(SHAPE, width=20)
    params = weights(Decoder, wide, ADAPTER)
    save_adapter(tmp_path / "wide", wide, ADAPTER, {name: params[name] for name in trainable_names(params)})
    with pytest.raises(ModelFileError, match=r"the config and the decoder make it .*; load it on the base that it was"):
        Pretrained.open(base, tmp_path / "wide")


def test_adapters_of_a_reward_model_are_refused(base, tmp_path):
    params = weights(RewardModel, SHAPE, ADAPTER)
    save_adapter(tmp_path / "score", SHAPE, ADAPTER, {name: params[name] for name in trainable_names(params)})
    with pytest.raises(
        ModelFileError, match="task_type = 'SEQ_CLS': a run starts from a language model; name adapters"
    ):
        Pretrained.open(base, tmp_path / "score")


def test_the_command_takes_adapters(base, lora, monkeypatch):
    monkeypatch.chdir(lora.parent)
    printed = CliRunner().invoke(cli, ["config", "hh", "--model", "base", "--adapter", "lora"])
    assert printed.exit_code == 0, printed.output
    assert f"path: {base}" in printed.output
    assert f"adapter: {lora}" in printed.output
    with pytest.raises(ConfigError, match=r"adapter = 'x': needs a model that it adapts; name that model with --model"):
        BaseConfig(adapter="x")
