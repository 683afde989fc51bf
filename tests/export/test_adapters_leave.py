"""Adapters as exports: they come back the same, and lie on the model that they name, over other adapters too."""

from pathlib import Path

import finished_run
import numpy as np
import pytest

from pit.export import export
from pit.model.adapters import merged
from pit.model.errors import ModelFileError
from pit.model.peft import load_adapter, save_adapter
from pit.model.pretrained import Pretrained, load_pretrained
from pit.run.folder import Run
from pit.stages import reward, rl


def texts(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_adapters_come_back_the_same_to_the_byte(run, adapter, tmp_path):
    read = load_adapter(adapter, run.config.policy)
    for name, value in rl.POLICY.load(run).trained.items():
        np.testing.assert_array_equal(read.params[name], value, err_msg=name)
    assert read.base == run.config.base.path
    save_adapter(tmp_path / "again", run.config.policy, read.config, read.params, base=read.base)
    first, again = texts(adapter), texts(tmp_path / "again")
    assert {name: first[name] for name in again} == again
    assert first.keys() - again.keys() == {
        *("README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
    }


def test_adapters_are_a_model_on_the_base_that_they_name(run, adapter, tmp_path):
    export(run, rl.POLICY, tmp_path / "merged")
    opened, expected = Pretrained.open(adapter), load_pretrained(tmp_path / "merged")[2]
    loaded = opened.load(run.mesh).params
    for name, value in expected.items():
        np.testing.assert_allclose(loaded[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert (opened.chat_template, opened.eos_ids) == (run.format.source, run.template.eos_ids)


@pytest.fixture(scope="module")
def again(adapter, tmp_path_factory) -> Run:
    """A run that starts from adapters, those of the first one, and trains adapters of its own at other places."""
    fields = ("rank=3", r"targets=.*\.(q|v|down)_proj")
    stages = [setting.removesuffix("rank=2") for setting in finished_run.ADAPTERS]
    changes = [f"{stage}{field}" for stage in stages for field in fields]
    run = finished_run.chat_run(tmp_path_factory.mktemp("again"), adapter, *changes)
    return finished_run.finish(run, "rl-policy", "reward-gap")


@pytest.mark.parametrize("stage", [rl.POLICY, reward.GAP], ids=["policy", "gap"])
def test_adapters_over_adapters_fit_the_model_under_both(again, run, stage, tmp_path):
    """Whole weights and base + adapters are the trained model, and not that without the first adapters."""
    model, base = stage.load(again), load_pretrained(Path(run.config.base.path))[2]
    trained = merged(model.params, stage.adapter(again.config))
    export(again, stage, tmp_path / "whole")
    export(again, stage, tmp_path / "lora", form="adapter")
    whole, read = load_pretrained(tmp_path / "whole")[2], load_adapter(tmp_path / "lora", run.config.policy)
    assert read.base == run.config.base.path
    # The output table of a reward model is no part of it.
    on_that = {"decoder." + name if stage is reward.GAP else name: value for name, value in base.items()}
    of_both = merged({**on_that, **read.params}, read.config)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, trained[name], err_msg=name)
        np.testing.assert_allclose(of_both[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    own = merged({**on_that, **model.trained}, stage.adapter(again.config))
    up = "layers.1.mlp.up" if stage is rl.POLICY else "decoder.layers.1.mlp.up"
    assert np.abs(own[up] - whole[up]).max() > 1e-2
    card = " ".join((tmp_path / "lora" / "README.md").read_text().split())
    assert "| base | base, under the adapters lora, which these files include |" in card
    assert f'.from_pretrained("{run.config.base.path}"' in card


def test_an_adapter_of_a_reward_model_is_no_start(run, tmp_path):
    export(run, reward.GAP, tmp_path / "gap", form="adapter")
    with pytest.raises(ModelFileError, match=r"task_type = 'SEQ_CLS': a run starts from a language model"):
        Pretrained.open(tmp_path / "gap")
