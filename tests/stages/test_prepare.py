"""Preparing a run: what is there and made of the same is kept, a stopped one goes on, all else is made again."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from pit.config import ConfigError, override
from pit.data.errors import DataError
from pit.data.store import write
from pit.data.store.read import StoreError
from pit.recipes import recipe
from pit.run.folder import Run
from pit.stages import prepare as stage
from pit.stages import sft
from pit.stages.prepare import prepare
from pit.train.log import PROGRESS_VARIABLE

sys.path.append(str(Path(__file__).parents[1] / "data"))
import chat_cases as cases


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "SHARD_ROWS", 100)
    return Run(tmp_path / "run", recipe("tiny"))


def count_shards(monkeypatch, fails_at=None):
    """Indices of the shards that are written from now on, until the one that fails."""
    written, original = [], write._write_shard

    def counting(job, index, rows):
        if index == fails_at:
            raise RuntimeError("stopped here")
        written.append(index)
        return original(job, index, rows)

    monkeypatch.setattr(write, "_write_shard", counting)
    return written


def test_a_stopped_one_goes_on(run, monkeypatch):
    with monkeypatch.context() as patch:
        count_shards(patch, fails_at=2)
        with pytest.raises(RuntimeError, match="stopped here"):
            prepare(run)
    assert not (run.folder / "store").exists()
    kept = {int(path.stem[-5:]) for path in (run.folder / "store.partial").glob("shard-*.json")}
    assert kept >= {0, 1}
    written = count_shards(monkeypatch)
    report = prepare(run)
    assert sorted(written) == sorted({0, 1, 2, 3} - kept)
    assert report.kept == run.store.manifest["rows"] == 400
    assert sorted(path.name for path in run.folder.iterdir()) == ["data", "prepared.json", "store", "tokenizer.json"]


def test_a_finished_one_is_kept_unless_the_format_changes(run, monkeypatch):
    assert prepare(run) is not None
    stamp = json.loads((run.folder / "prepared.json").read_text())
    assert prepare(run) is None
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    assert prepare(run) is not None
    assert json.loads((run.folder / "prepared.json").read_text())["fingerprint"] != stamp["fingerprint"]


# Chat formats.


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
    assert chat.store.manifest["rows"] == report.kept == 400
    x, better, _ = chat.fold("sft").row(0)
    (message,) = template.decode_prompt(x)
    said = [("user", message.content), ("assistant", template.decode_answer(better))]
    whole = cases.rendered("chatml", *said)
    assert whole[: len(x) + len(template.closings.input) + len(better)] == [*x, *template.closings.input, *better]
    files = ["data", "prepared.json", "store", "template.json", "tokenizer.json"]
    assert sorted(path.name for path in run.folder.iterdir()) == files
    # The same format again, on another day, is the same run.
    again = Run(run.folder, chat.config)
    again.adopt(cases.tokenizer("chatml"), dataclasses.replace(cases.chat_format("chatml"), date="2031-01-01"))
    assert prepare(again) is None
    # The request is no part of the contents.
    assert prepare(chat_run(run, "chatml")) is None
    # Another format is.
    other = chat_run(run, "qwen25")
    with pytest.raises(StoreError, match="was tokenised with tokenizer"):
        _ = other.store
    assert prepare(other) is not None


def test_a_request_is_part_of_a_stages_hash_in_a_chat_format_alone(run):
    prepare(run)
    one, two = (Run(run.folder, override(run.config, [f"template.request={text}"])) for text in ("One.", "Two."))
    assert sft.IMPROVER.hash(one) == sft.IMPROVER.hash(two)
    prepare(chat_run(run))
    one, two = (Run(one.folder, one.config), Run(two.folder, two.config))
    assert sft.IMPROVER.hash(one) != sft.IMPROVER.hash(two)


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
    assert prepare(chat_run(run, "chatml", f"sft_improver.packing.row_length={path}")) is not None


def test_a_format_that_drops_thoughts_is_said_once(run, capsys, monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")
    prepare(chat_run(run, "qwen3"))
    assert capsys.readouterr().out.count("policy and improver share no prefix beyond x") == 1
    prepare(chat_run(run, "chatml"))
    assert "prefix" not in capsys.readouterr().out


def test_a_folder_with_a_damaged_format_is_refused(run):
    chat = chat_run(run)
    (run.folder / "template.json").write_text("{}")
    with pytest.raises(DataError, match=r"template\.json: is not a chat format"):
        prepare(chat)
