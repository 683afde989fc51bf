"""Exported models under `pit check`: read in the format of their run, without the run and without torch."""

import json
from pathlib import Path

import finished_run
import numpy as np
import pytest
from small_model import write_preferences

from pit.cli import main
from pit.config import ConfigError
from pit.export import export
from pit.model.config_json import read_json
from pit.run.exported import ExportFacts, exported_template
from pit.stages import reward, rl
from pit.testing.checkpoint import CheckpointScorer
from pit.testing.models import open_folder
from pit.testing.policy import PolicyScorer
from pit.types import Message

PROMPTS = [(Message("user", "describe the red lamp"),), (Message("user", "small?"),)]
OUTPUTS, REFERENCES = ["it is red", "no <|im_end|>"], ["it is", "yes"]


@pytest.fixture(scope="module", params=["chat", "roles"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    run = finished_run.role_run(folder, "tiny") if request.param == "roles" else finished_run.chat_run(folder, "qwen3")
    return finished_run.finish(run, "reward-gap", "reward-quality", "rl-policy")


@pytest.mark.parametrize("stage", [reward.GAP, reward.QUALITY], ids=["gap", "quality"])
def test_a_reward_model_scores_as_in_its_run(stage, run, tmp_path):
    export(run, stage, tmp_path / "exported")
    theirs, ours = CheckpointScorer.open(run.folder, stage.name), open_folder(str(tmp_path / "exported"))
    assert isinstance(ours, CheckpointScorer)
    scores = ours.gap(PROMPTS, OUTPUTS, REFERENCES)
    np.testing.assert_allclose(scores, theirs.gap(PROMPTS, OUTPUTS, REFERENCES), atol=1e-6)
    assert np.ptp(scores) > 1e-3
    for prompt, output, reference in zip(PROMPTS, OUTPUTS, REFERENCES, strict=True):
        assert ours.encode(prompt, output, reference) == theirs.encode(prompt, output, reference)


def test_a_policy_reads_and_writes_as_in_its_run(run, tmp_path):
    export(run, rl.POLICY, tmp_path / "exported")
    ours = open_folder(str(tmp_path / "exported"))
    assert isinstance(ours, PolicyScorer)
    assert ours.format == PolicyScorer.open(run.folder, rl.POLICY).format
    facts = ExportFacts.of(read_json(tmp_path / "exported" / "config.json"), tmp_path)
    if run.format is not None:
        # A template that works out its pattern tells the day of the run too.
        assert exported_template(tmp_path / "exported", facts).format.date == run.format.date
    # Qwen 3 would think otherwise, which it never did in training.
    card = (tmp_path / "exported" / "README.md").read_text()
    assert ("enable_thinking=False" in card) == (run.format is not None)


def test_adapters_alone_are_not_checked(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "README.md").write_text("# gap\n\nA reward model trained by PIT.\n")
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path)])
    assert "holds adapters without their base; export the stage with --merged to check it" in capsys.readouterr().err


def test_the_command_checks_an_export(run, tmp_path, capsys):
    """Its figures are those of the run, on the same rows."""
    export(run, reward.GAP, tmp_path / "gap")
    pairs = write_preferences(tmp_path / "pairs.jsonl", rows=12)
    tables = []
    for model in (run.folder, tmp_path / "gap"):
        report = tmp_path / "report.json"
        words = ["--data", str(pairs), "--invariant", "order_wl_lw", "--invariant", "batch_size", "--examples", "3"]
        main(["check", str(model), *words, "--json", str(report)])
        results = json.loads(report.read_text())["results"]
        tables.append([(result["name"], result["status"], result["interval"]) for result in results])
    assert tables[0] == tables[1]


def test_a_language_model_is_not_measured_on_pairs(run, tmp_path, capsys):
    export(run, rl.POLICY, tmp_path / "policy")
    pairs = write_preferences(tmp_path / "pairs.jsonl", rows=1)
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path / "policy"), "--data", str(pairs)])
    rule = "is a language model, which has samples and no scores, so nothing of it can be measured on pairs of"
    assert f"{rule} {pairs};" in capsys.readouterr().err


FACTS = ExportFacts("reward-gap", True, False, "Again.", (8, 8, 8), (3, 1), "2024-07-26")


def test_facts_come_back_the_same():
    values = json.loads(json.dumps({"pit": FACTS.to_json()}))
    assert ExportFacts.of(values, Path("config.json")) == FACTS
    assert ExportFacts.of({}, Path("config.json")) is None


@pytest.mark.parametrize("change", [{"windows": [1, 2]}, {"request": 3}, {"eos_ids": ["3"]}, {"more": 1}])
def test_other_facts_are_refused(change):
    with pytest.raises(ConfigError, match=r"^config.json: pit = .*: is not what `pit export` writes; export the model"):
        ExportFacts.of({"pit": {**FACTS.to_json(), **change}}, Path("config.json"))
