"""Preparing a run in a chat format: the format of the pretrained model, or of the folder, decides the template."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from pit.config import ConfigError, override
from pit.data.errors import DataError
from pit.data.store import write
from pit.data.store.read import StoreError
from pit.model.decoder import Decoder
from pit.model.params import build
from pit.model.pretrained import save_pretrained
from pit.recipes import recipe
from pit.run.base import open_pretrained
from pit.run.folder import Run
from pit.stages import sft
from pit.stages.prepare import prepare

sys.path.append(str(Path(__file__).parents[1] / "data"))
import chat_cases as cases


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_ROWS", 100)
    return Run(tmp_path / "run", recipe("tiny"))


SECTIONS = ("sft_policy", "sft_improver", "reward_quality", "reward_gap", "reward_judge", "refresh")
ROOMY = [f"{section}.packing.row_length=160" for section in SECTIONS]


def chat_run(run, name="chatml", *settings):
    """Return the run with the tokenizer and the format of a pretrained model, and rows that hold its paths."""
    changed = Run(run.folder, override(run.config, [*ROOMY, *settings]))
    changed.adopt(cases.tokenizer(name), cases.chat_format(name))
    return changed


def test_a_chat_format_in_the_folder_decides_the_template(run):
    chat = chat_run(run, "chatml", "template.request=Once more, please.")
    report = prepare(chat)
    template = chat.template
    assert template.facts == ("Once more, please.",)
    assert chat.tokenizer.hash == cases.tokenizer("chatml").hash
    assert chat.store.manifest["rows"] == report.stored > 300
    x, better, _ = chat.fold("sft").row(0)
    (message,) = template.decode_prompt(x)
    said = [("user", message.content), ("assistant", template.decode_answer(better))]
    whole = cases.rendered("chatml", *said)
    assert whole[: len(x) + len(template.closings.input) + len(better)] == [*x, *template.closings.input, *better]
    files = ["config.json", "data", "prepared.json", "store", "template.json", "tokenizer.json"]
    assert sorted(path.name for path in run.folder.iterdir()) == files
    # The same format again, on another day, is the same run.
    again = Run(run.folder, chat.config)
    again.adopt(cases.tokenizer("chatml"), dataclasses.replace(cases.chat_format("chatml"), date="2031-01-01"))
    assert prepare(again) is None
    # Another format is another run.
    other = Run(run.folder, chat.config)
    other.adopt(cases.tokenizer("qwen25"), cases.chat_format("qwen25"))
    with pytest.raises(StoreError, match="was tokenised with tokenizer"):
        _ = other.store
    assert prepare(other) is not None


def test_a_request_is_part_of_a_stages_hash_in_a_chat_format_alone(run):
    def hashes(of):
        asked = (Run(of.folder, override(of.config, [f"template.request={text}"])) for text in ("One.", "Two."))
        return {sft.IMPROVER.hash(run) for run in asked}

    prepare(run)
    assert len(hashes(run)) == 1
    chat = chat_run(Run(run.folder.with_name("chat"), run.config))
    prepare(chat)
    assert len(hashes(chat)) == 2


def test_rows_must_hold_what_the_chat_format_adds(run):
    windows = run.config.windows
    template = cases.chat_template("chatml", (windows.input, windows.reference, windows.output))
    path = template.path(referenced=True)
    assert path > windows.input + windows.reference + windows.output
    short = chat_run(run, "chatml", f"sft_improver.packing.row_length={path - 1}")
    message = (
        f"sft_improver.packing.row_length = {path - 1}: must hold the longest path of {path} tokens of windows and"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(short)
    assert not (run.folder / "store").exists()
    assert prepare(chat_run(run, "chatml", f"sft_improver.packing.row_length={path}")) is not None


def test_a_format_that_drops_thoughts_is_said(run):
    said = "policy and improver share no prefix beyond x"
    for name, forgets in (("qwen3", True), ("chatml", False)):
        prepared = prepare(chat_run(Run(run.folder.with_name(name), run.config), name))
        assert sum(said in line for line in prepared.lines()) == forgets


def test_a_folder_with_a_damaged_format_is_refused(run):
    chat = chat_run(run)
    (run.folder / "template.json").write_text("{}")
    with pytest.raises(DataError, match=r"template\.json: is not a chat format"):
        prepare(chat)


def test_rows_that_the_chat_format_refuses_are_counted(run, tmp_path):
    asked = [{"role": "user", "content": "a b"}]
    system = [{"role": "system", "content": "a"}, *asked]
    rows = [
        {"prompt": [*(system if i % 10 == 0 else asked)], "chosen": f"red {i}", "rejected": f"lamp {i}"}
        for i in range(60)
    ]
    for i, row in enumerate(rows):
        row["prompt"] = [*row["prompt"][:-1], {"role": "user", "content": f"a {i}"}]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    prepared = prepare(chat_run(run, "gemma", f"data.path={data}", "data.task=none"))
    assert (prepared.stored, prepared.unusable) == (54, {"conversation that the chat format refuses": 6})
    assert any("(a system message, two turns of one role)" in line for line in prepared.lines())


# Pretrained models.


@pytest.fixture
def model(tmp_path):
    """A pretrained folder that speaks the chat format of SmolLM2, with the shape of `tiny`."""
    folder, tokenizer = tmp_path / "model", cases.tokenizer("chatml")
    params = build(Decoder, recipe("tiny").policy, tokenizer.vocab_size, seed=1)[1]
    eos = cases.chat_format("chatml").eos_ids
    text = tokenizer.to_json()
    save_pretrained(folder, recipe("tiny").policy, params, tokenizer.vocab_size, tokenizer=text, eos_ids=eos)
    (folder / "chat_template.jinja").write_text(cases.chat_format("chatml").source)
    return folder


def on(model, tmp_path, *settings, out="run"):
    """Return a run that starts from a pretrained folder."""
    config = override(recipe("tiny"), [*ROOMY, f"base.path={model}", *settings])
    return Run(tmp_path / out, config)


def test_a_pretrained_model_brings_its_tokenizer_and_chat_format(model, tmp_path):
    run = on(model, tmp_path)
    assert prepare(run) is not None
    assert run.tokenizer.hash == cases.tokenizer("chatml").hash
    assert run.format.source == cases.chat_format("chatml").source
    assert run.template.eos_ids == cases.chat_format("chatml").eos_ids
    assert prepare(on(model, tmp_path)) is None


def test_a_model_without_a_chat_template_needs_one(model, tmp_path):
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"has no chat template; name a jinja file: --set template.path=FILE"):
        prepare(on(model, tmp_path))
    assert not (tmp_path / "run").exists()
    mine = tmp_path / "mine.jinja"
    mine.write_text(cases.chat_format("qwen25").source)
    run = on(model, tmp_path, f"template.path={mine}")
    prepare(run)
    assert run.format.source == cases.chat_format("qwen25").source
    mine.unlink()
    with pytest.raises(DataError, match=r"template.path = .*mine.jinja: cannot be read .*; name a jinja file"):
        prepare(on(model, tmp_path, f"template.path={mine}", out="other"))


def test_stages_keep_the_chat_format_that_they_were_trained_in(model, tmp_path):
    run = on(model, tmp_path)
    prepare(run)
    (run.stage_folder("sft-policy") / "checkpoints" / "1").mkdir(parents=True)
    kept = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    (model / "chat_template.jinja").write_text(cases.chat_format("qwen25").source)
    open_pretrained.cache_clear()
    with pytest.raises(DataError, match=r"base.path = .*: its tokenizer or chat template is not the one that"):
        prepare(on(model, tmp_path))
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == kept
