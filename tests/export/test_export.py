"""Exports: what a folder holds, that it comes back the same, and what is refused, with nothing left behind."""

import dataclasses
import json
import re
import shutil

import finished_run
import huggingface_hub
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from small_model import write_preferences

from pit.atomic import PlaceError
from pit.cli import main
from pit.cli.options import make_config
from pit.config import ConfigError, digest
from pit.evaluate.schema import Results, write_results
from pit.evaluate.stats import Delta, Interval
from pit.export import ExportError, export
from pit.export.speech import generation_config, speech_of
from pit.model import tensor_files
from pit.model.adapters import merged
from pit.model.peft import load_adapter
from pit.model.pretrained import Pretrained, load_pretrained, save_pretrained
from pit.run.folder import Run
from pit.stages import reward, rl, rl_iterated, sft
from pit.train.checkpoint import CheckpointError

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


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


@pytest.mark.parametrize("declared", [8, 100_000])
def test_an_export_declares_as_long_an_input_as_its_base_and_as_its_run_reads(run, declared, tmp_path, monkeypatch):
    monkeypatch.setitem(run.pretrained.source.config.values, "max_position_embeddings", declared)
    export(run, reward.GAP, tmp_path / "gap")
    export(run, rl.POLICY, tmp_path / "lora", form="adapter")
    longest = max(declared, run.template.path(referenced=True))
    assert json.loads((tmp_path / "gap" / "config.json").read_text())["max_position_embeddings"] == longest
    for folder in ("gap", "lora"):
        assert json.loads((tmp_path / folder / "tokenizer_config.json").read_text())["model_max_length"] == longest


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
