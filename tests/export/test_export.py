"""Exports: what a folder holds, that it comes back the same, and what is refused, with nothing left behind."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import finished_run
import huggingface_hub
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from small_model import cases, write_preferences

from pit.atomic import PlaceError
from pit.cli import main
from pit.cli.options import make_config
from pit.config import ConfigError, DataConfig, digest, override
from pit.data.chat import ChatFormat
from pit.evaluate.schema import Results, write_results
from pit.evaluate.stats import Delta, Interval
from pit.export import ExportError, export
from pit.export.speech import generation_config, speech_of
from pit.model import tensor_files
from pit.model.adapters import merged
from pit.model.errors import ModelFileError
from pit.model.peft import load_adapter, save_adapter
from pit.model.pretrained import Pretrained, load_pretrained, save_pretrained
from pit.model.saving import written_shape
from pit.recipes import RECIPES, recipe
from pit.run.folder import Run
from pit.stages import reward, rl, rl_iterated, sft
from pit.train.checkpoint import CheckpointError
from pit.types import Message

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Adapters in every stage, on a chat model, and a request that is not the default."""
    changes = *finished_run.ADAPTERS, "template.request=Write it once more."
    run = finished_run.chat_run(tmp_path_factory.mktemp("chat"), "chatml", *changes)
    return finished_run.finish(run, "rl-policy", "rl-improver-1", "reward-gap")


@pytest.fixture(scope="module")
def improver(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "improver"
    export(run, rl_iterated.IMPROVER_1, folder)
    return folder


@pytest.fixture(scope="module")
def gap(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "gap"
    export(run, reward.GAP, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "lora"
    export(run, rl.POLICY, folder, form="adapter")
    return folder


def texts(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def front(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_merged_weights_are_those_of_the_stage(run, improver):
    model = rl_iterated.IMPROVER_1.load(run)
    expected = merged(model.params, rl_iterated.IMPROVER_1.adapter(run.config))
    config, vocab_size, params = load_pretrained(improver)
    assert (config, vocab_size) == (run.config.policy, run.vocab_size)
    assert params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)
    base = rl_iterated.IMPROVER_1.fresh(run).params["layers.0.attention.q"]
    assert not np.array_equal(params["layers.0.attention.q"], base)


def test_a_folder_holds_the_format_and_the_ends_of_the_run(run, improver):
    opened = Pretrained.open(improver)
    assert opened.chat_template == run.format.source
    assert opened.eos_ids == run.template.eos_ids
    assert len(opened.eos_ids) == 2
    assert opened.special_tokens == {**run.format.special_tokens, "pad_token": "<|im_end|>"}
    assert opened.tokenizer().decode() == run.tokenizer.to_json()
    generation = json.loads((improver / "generation_config.json").read_text())
    assert generation["max_new_tokens"] == run.config.windows.output
    assert (generation["do_sample"], generation["temperature"], generation["top_k"]) == (True, 1.0, 0)


def test_a_reward_model_reads_its_score_at_the_end_of_an_answer(run, gap):
    fields = json.loads((gap / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForSequenceClassification"]
    assert fields["pit"]["reads_reference"] is True
    assert fields["pit"]["request"] == "Write it once more."
    assert fields["eos_token_id"] == run.template.closings.eos
    assert fields["pad_token_id"] not in run.template.eos_ids[:1]
    assert not (gap / "generation_config.json").exists()
    settings = json.loads((gap / "tokenizer_config.json").read_text())
    assert run.tokenizer.added[fields["pad_token_id"]] == settings["pad_token"]
    model = reward.GAP.load(run)
    np.testing.assert_array_equal(load_pretrained(gap)[2]["score"], model.params["score"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_halves_the_file(run, dtype, tmp_path):
    """Every weight is the trained one, merged in float32 and rounded once; what no adapter touches is the base's."""
    main(["export", "--run", str(run.folder), "rl-policy", str(tmp_path / "half"), "--dtype", dtype])
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {dtype}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == dtype
    read = load_pretrained(tmp_path / "half")[2]
    for name, value in merged(rl.POLICY.load(run).params, rl.POLICY.adapter(run.config)).items():
        np.testing.assert_array_equal(read[name], value.astype(dtype), err_msg=name)


def test_a_run_from_an_export_exports_the_same(run, improver, tmp_path):
    """Export, start a run from it, export a stage of that run whose weights are still those of the start."""
    other = finished_run.chat_run(tmp_path, improver, "sft_policy.adapter=none")
    finished_run.finish(other, "sft-policy", spread=None)
    export(other, sft.POLICY, tmp_path / "again")
    first, again = texts(improver), texts(tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert first[name] == again[name], name
    assert first["generation_config.json"] == again["generation_config.json"]
    one, two = (json.loads(files["config.json"]) for files in (first, again))
    assert {**one, "pit": None} == {**two, "pit": None}


def test_a_run_from_an_export_asks_for_a_better_answer_in_the_words_of_the_first(improver, tmp_path):
    data = write_preferences(tmp_path / "pairs.jsonl", rows=40)
    (tmp_path / "more.json").write_text('{"template": {"request": "From a file."}}')

    def request(*settings, file=None):
        return make_config("chat", data, None, settings, file, model=str(improver)).template.request

    assert request() == "Write it once more."
    assert request("template.request=Better.") == "Better."
    assert request(file=tmp_path / "more.json") == "From a file."


def test_an_export_read_and_written_is_the_same_to_the_byte(improver, tmp_path):
    opened = Pretrained.open(improver)
    fields = opened.source.config.values
    save_pretrained(
        tmp_path / "again",
        *load_pretrained(improver)[::2],
        opened.vocab_size,
        tokenizer=opened.tokenizer().decode(),
        chat_template=opened.chat_template,
        special_tokens=opened.special_tokens,
        eos_ids=opened.eos_ids,
        bos_id=opened.bos_id,
        pad_id=fields["pad_token_id"],
        fields={"pit": fields["pit"]},
    )
    first, again = texts(improver), texts(tmp_path / "again")
    assert first.keys() - again.keys() == {"README.md", "generation_config.json"}
    assert {name: first[name] for name in again} == again


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


def test_the_models_of_every_recipe_have_a_family_in_which_they_leave():
    """As docs/guides/export.md says; those of recipes that start from a model leave in the family of that model."""
    families = {}
    for name in RECIPES:
        config = recipe(name)
        for shape, reward_model in ((config.policy, False), (config.reward_model, True)):
            families.setdefault(name, set()).add(written_shape(shape, 300, reward=reward_model)[0].architecture)
    both = "ForCausalLM", "ForSequenceClassification"
    expected = {"hh": "Llama", "tiny": "Llama", "paper": "Gemma2", "demo": "Pit", "describe": "Pit", "relay": "Pit"}
    assert families == {name: {f"{family}{kind}" for kind in both} for name, family in expected.items()}


# The card.

FRONT = {
    "library_name": ("transformers", "peft"),
    "pipeline_tag": ("text-generation", "text-classification"),
    "base_model": str,
    "base_model_relation": ("finetune", "adapter"),
    "tags": list,
}


@pytest.mark.parametrize("name", ["improver", "gap", "adapter"])
def test_the_front_matter_is_valid(name, request):
    folder = request.getfixturevalue(name)
    fields = front(folder)
    assert {"library_name", "pipeline_tag", "tags"} <= fields.keys() <= FRONT.keys()
    for key, value in fields.items():
        rule = FRONT[key]
        assert isinstance(value, rule) if isinstance(rule, type) else value in rule
    assert fields["library_name"] == ("peft" if name == "adapter" else "transformers")
    assert all(isinstance(tag, str) for tag in fields["tags"])
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == fields


def test_the_card_names_the_base_on_a_hub(run, tmp_path):
    export(run, rl.POLICY, tmp_path / "policy", form="adapter", base="owner/name")
    assert front(tmp_path / "policy")["base_model"] == "owner/name"
    assert front(tmp_path / "policy")["base_model_relation"] == "adapter"
    assert load_adapter(tmp_path / "policy", run.config.policy).base == "owner/name"


@pytest.mark.parametrize("name", ["improver", "gap", "adapter"])
def test_the_code_of_the_card_is_python_and_says_the_request(run, name, request):
    (code,) = CODE.findall((request.getfixturevalue(name) / "README.md").read_text())
    compile(code, "README.md", "exec")
    assert (repr(run.config.template.request).strip("'") in code) == (name != "adapter")


def test_the_card_says_data_settings_and_acceptance(run, improver):
    card = (improver / "README.md").read_text()
    assert run.store.hash in card
    assert f"| eval | {len(run.store.fold('eval'))} |" in card
    assert "pit export --run RUN reward-gap FOLDER" in card
    assert "beta: 0.025" in card
    windows = run.config.windows
    row = f"| {windows.input} tokens of a prompt, {windows.reference} of a reference, {windows.output} of an answer |"
    assert f"| windows {row}" in card
    assert "The run has not been evaluated." in card
    assert str(run.folder) not in card


def test_the_card_names_the_model_that_accepts_and_its_gap(run, tmp_path):
    other = finished_run.reset(run, "improve.accept_by=likelihood", "improve.gap=centred", "improve.threshold=0.5")
    export(other, rl_iterated.IMPROVER_1, tmp_path / "improver")
    card = (tmp_path / "improver" / "README.md").read_text()
    assert "exceeds\n0.5;" in card
    assert "pit export --run RUN sft-improver FOLDER" in card
    assert "half of log p(candidate | prompt, answer)" in card
    export(other, reward.GAP, tmp_path / "gap")
    (code,) = CODE.findall((tmp_path / "gap" / "README.md").read_text())
    assert "offset = score(prompt, answer, answer) + score(prompt, reference, reference)" in code


def test_results_of_the_run_are_on_the_card_with_intervals(run, tmp_path):
    results = Results(
        recipe="chat",
        seeds=(0,),
        config_hash=digest(run.config),
        versions={},
        delta={"improved_over_policy/judge": Delta(4.0, -1.5, 9.25, 200, 30, 22, 148, "sign")},
        accuracies={"length": Interval(0.5, 0.4, 0.6, 90), "R_PIT": Interval(0.625, 0.5, 0.75, 90)},
        notes=("A caveat.",),
    )
    path = run.folder / "results.json"
    try:
        write_results(results, path)
        export(run, rl.POLICY, tmp_path / "one")
        write_results(dataclasses.replace(results, config_hash="of another config"), path)
        export(run, rl.POLICY, tmp_path / "two")
    finally:
        path.unlink()
    card = (tmp_path / "one" / "README.md").read_text()
    assert "| improved over policy/judge | +4.0 [-1.5, +9.2] | 200 |" in card
    assert "| R_PIT | 62.5 % [50.0, 75.0] |" in card
    assert "- A caveat." in card
    assert "The run has not been evaluated." in (tmp_path / "two" / "README.md").read_text()


def test_greedy_sampling_is_written_as_such(run):
    speech = speech_of(run.template, "Again.", reward=False)
    greedy = dataclasses.replace(run.config.improve, temperature=0.0)
    assert json.loads(generation_config(speech, greedy, 7)) == {
        "do_sample": False,
        "eos_token_id": list(run.template.eos_ids),
        "max_new_tokens": 7,
        "pad_token_id": run.template.pad,
    }
    filtered = dataclasses.replace(run.config.improve, temperature=0.5, top_k=4, top_p=0.75, min_p=0.125)
    values = json.loads(generation_config(speech, filtered, 7))
    assert [values[name] for name in ("temperature", "top_k", "top_p", "min_p")] == [0.5, 4, 0.75, 0.125]


@pytest.mark.parametrize("reward", [False, True])
def test_a_template_that_tells_the_day_tells_that_of_the_run(reward):
    """Whoever renders the exported template, on whatever day, gives the model the tokens of its training."""
    template = cases.chat_template("llama3")
    speech = speech_of(template, "Again.", reward=reward)
    turns = [Message("user", "red?"), Message("assistant", "no")]
    later = ChatFormat(speech.chat_template, dict(speech.special_tokens), date="2031-01-02")
    text = template.format.render(turns, opening=False)
    assert "Today Date: 26 Jul 2024" in text
    assert later.render(turns, opening=False) == text


# Refusals.


def test_what_cannot_be_exported_is_refused(run, improver, tmp_path):
    full = finished_run.reset(run, "sft_policy.adapter=none")
    fresh = finished_run.reset(run, "base.path=none")
    gguf = finished_run.reset(run, "base.path=/models/small.gguf")
    cases = [
        (run, rl.POLICY, improver, {}, PlaceError, r"improver: already exists and is not an empty folder; remove it"),
        (run, sft.POLICY, None, {}, CheckpointError, r"stage sft-policy has not finished .* run `pit sft-policy"),
        (run, rl_iterated.IMPROVER_2, None, {}, ConfigError, r"is not part of this run"),
        (full, sft.POLICY, None, {"form": "adapter"}, ExportError, r"^--adapter: stage sft-policy trained all its"),
        (run, rl.POLICY, None, {"form": "adapter", "dtype": "bfloat16"}, ExportError, r"^--dtype bfloat16: adapters"),
        (run, rl.POLICY, run.folder / "stages" / "x", {}, ExportError, r"lies among the files of the run"),
        (fresh, rl.POLICY, None, {"form": "adapter"}, ExportError, r"has random weights that no file holds; export it"),
        (
            fresh,
            rl.POLICY,
            None,
            {"base": "a/b"},
            ExportError,
            r"^--base a/b: the run started from random weights, not",
        ),
        (gguf, rl.POLICY, None, {"form": "adapter"}, ExportError, r"PEFT loads no GGUF file; name the model .* --base"),
    ]
    for of, stage, folder, options, kind, words in cases:
        with pytest.raises(kind, match=words):
            export(of, stage, folder or tmp_path / "new", **options)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("", "its newest checkpoint is None, but the stage finished at step"),
        ("rl-improver-1", "was trained on other data or with another config"),
    ],
)
def test_a_finished_stage_whose_checkpoint_is_gone_or_another_ones_is_refused(run, other, words, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    copy = Run.open(tmp_path / "run")
    checkpoints = copy.stage_folder("rl-policy") / "checkpoints"
    shutil.rmtree(checkpoints)
    if other:
        shutil.copytree(copy.stage_folder(other) / "checkpoints", checkpoints)
    with pytest.raises(CheckpointError, match=words):
        export(copy, rl.POLICY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_failed_export_leaves_nothing(run, form, tmp_path, monkeypatch):
    def full(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(KeyboardInterrupt):
        export(run, rl.POLICY, tmp_path / "new", form=form)
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_and_names_the_stages(run, tmp_path, capsys):
    words = ["export", "--run", str(run.folder)]
    main([*words, "rl-policy", str(tmp_path / "lora"), "--adapter"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()
    with pytest.raises(SystemExit):
        main([*words, "rl-policy", str(tmp_path / "both"), "--adapter", "--merged"])
    assert "--merged and --adapter are two forms of a model; give one of them." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "policy", str(tmp_path / "other")])
    assert "STAGE = 'policy': is not a stage; give one of sft-policy, sft-improver" in capsys.readouterr().err


def test_an_adapter_of_a_reward_model_is_no_start(run, tmp_path):
    export(run, reward.GAP, tmp_path / "gap", form="adapter")
    with pytest.raises(ModelFileError, match=r"task_type = 'SEQ_CLS': a run starts from a language model"):
        Pretrained.open(tmp_path / "gap")


def test_a_run_starts_from_an_export_with_role_tokens(tmp_path):
    first = finished_run.finish(finished_run.role_run(tmp_path / "first", "tiny"), "rl-policy")
    folder = tmp_path / "policy"
    export(first, rl.POLICY, folder)
    config = recipe("tiny", Pretrained.open(folder))
    second = finished_run.prepared(Run(tmp_path / "second", override(config, ["data.synthetic_rows=400"])))
    assert second.template.hash == first.template.hash
    trained, started = rl.POLICY.load(first).params, sft.POLICY.fresh(second).params
    assert trained.keys() == started.keys()
    for name, value in trained.items():
        np.testing.assert_array_equal(started[name], value, err_msg=name)


def test_the_tokenizer_of_an_export_with_role_tokens_must_be_named(tmp_path):
    first = finished_run.finish(finished_run.role_run(tmp_path / "first", "tiny"), "rl-policy")
    folder = tmp_path / "policy"
    export(first, rl.POLICY, folder)
    config = override(recipe("tiny"), [f"base.path={folder}", "data.synthetic_rows=400"])
    with pytest.raises(ConfigError, match=f"tokenizer.path = None: .*--set tokenizer.path={folder}/tokenizer.json"):
        finished_run.prepared(Run(tmp_path / "second", config))
    with pytest.raises(ConfigError, match="has role tokens and no chat format; start from it with another recipe"):
        recipe(
            "chat", Pretrained.open(folder), DataConfig(task=None, path=str(write_preferences(tmp_path / "p.jsonl")))
        )
