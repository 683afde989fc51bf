"""`pit check` end to end: what it prints and writes, its exit status, replays, and what bad input says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pit.testing.command import check
from pit.testing.faults import CheckError

MODELS = '''
import numpy as np

def good(prompts, outputs, references):
    return np.array([words(y) - words(r) for y, r in zip(outputs, references, strict=True)], np.float32)

def words(text):
    return min(len(set(text.split())), 9) - 0.1 * len(text.split())

def by_batch(prompts, outputs, references):
    return good(prompts, outputs, references) / np.float32(len(outputs))

class Rows:
    """A scorer of rows alone."""

    def draw(self, prompts, temperature, seed):
        return None

rows = Rows()
nothing = 3
'''

PAIRS = [
    ("Why is it so?", "Because of a long and simple reason.", "So what?"),
    ("How many?", "There are two of them here.", "No no no."),
    ("Who was it?", "It was her brother.", "Nobody."),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with models and pairs, which is the working directory."""
    (tmp_path / "made_up_models.py").write_text(MODELS)
    lines = [json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    sys.modules.pop("made_up_models", None)
    return tmp_path


def run(*words):
    return CliRunner().invoke(check, [*map(str, words)])


def test_a_good_scorer(project):
    written = ["--json", "a.json", "--html", "a.html"]
    result = run("made_up_models:good", "--data", "pairs.jsonl", "--examples", 5, *written)
    assert result.exception is None, result.output
    assert "0 violated of " in result.output
    assert re.search(r"batch_size .* held .* 5 ", result.output)
    assert "needs score_rows()" in result.output
    assert re.search(r"accuracy .* 1\.000 \[0\.439, 1\.000\]", result.output)
    assert not (project / "pit-failures" / "batch_size.json").exists()
    report = json.loads((project / "a.json").read_text())
    by_name = {each["name"]: each for each in report["results"]}
    assert (report["model"], report["data"], report["seed"]) == ("made_up_models:good", "pairs.jsonl", 0)
    assert by_name["accuracy"]["status"] == "measured"
    assert by_name["accuracy"]["interval"]["n"] == 3
    assert by_name["accuracy"]["detail"] == "not told from 0.5"
    assert by_name["tree_is_paths"] == {
        **by_name["tree_is_paths"],
        "status": "not applicable",
        "detail": "needs score_rows()",
        "examples": 0,
        "interval": None,
    }
    page = (project / "a.html").read_text()
    assert page.count("<tr>") == len(by_name) + 1
    assert "http" not in page.replace("http-equiv", "")


def test_a_violation_ends_with_status_1_and_is_replayed(project):
    options = ["--invariant", "batch_size", "--examples", 30]
    result = run("made_up_models:by_batch", *options)
    assert result.exit_code == 1
    assert "batch_size: violated: gap in a batch: " in result.output
    command = "pit check made_up_models:by_batch --replay pit-failures/batch_size.json"
    assert f"again: {command}" in result.output
    assert "1 violated of 1 in " in result.output

    again = run(*command.split()[2:])
    assert again.exit_code == 1
    assert "batch_size: violated: gap in a batch: " in again.output
    mended = run("made_up_models:good", "--replay", "pit-failures/batch_size.json")
    assert mended.exit_code == 0
    assert mended.output.endswith("batch_size: held\n")
    other = run("made_up_models:rows", "--replay", "pit-failures/batch_size.json")
    assert str(other.exception) == (
        "pit-failures/batch_size.json: is of batch_size, which needs gap(); replay it on the same model"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: is no model (no config.json); name the folder of a run, "),
        (
            ["made_up_models:nothing"],
            "made_up_models:nothing: is a int; must be a scorer (gap, quality or ",
        ),
        (["made_up_models:good", "--invariant", "speed"], "invariant 'speed': there is none of that name or kind; "),
        (["made_up_models:good"], "no --data: holds 0 pairs, and a check needs at least 2 with "),
        (
            ["made_up_models:good", "--data", "prompts.jsonl"],
            "prompts.jsonl: unknown format, its first 1 rows have ",
        ),
        (
            ["made_up_models:good", "--data", "empty.jsonl"],
            "empty.jsonl: none of 1 rows is a pair (1 empty answer);",
        ),
        (
            ["made_up_models:good", "--data", "pairs.jsonl", "--samples-of", "rl-policy"],
            "--samples-of rl-policy: takes the place of --data pairs.jsonl; give one of them",
        ),
        (
            ["made_up_models:good", "--samples-of", "rl-policy"],
            "--samples-of rl-policy: made_up_models:good is not the folder of a run; give --data instead",
        ),
        (["made_up_models:good", "--replay", "pairs.jsonl"], "pairs.jsonl: is no saved example (JSONDecodeError: "),
    ],
)
def test_bad_input_is_refused(project, words, message):
    (project / "prompts.jsonl").write_text('{"prompt": "why"}')
    (project / "empty.jsonl").write_text('{"prompt": "why", "chosen": "", "rejected": "a"}')
    result = run(*words)
    assert isinstance(result.exception, CheckError)
    assert str(result.exception).startswith(message)


def subprocess_environment(folder):
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("COV_")},
        "JAX_PLATFORMS": "cpu",
        "PIT_CACHE": str(folder / "cache"),
    }


EXAMPLE = Path(__file__).parents[2] / "examples" / "reward_model_tests"


def test_the_example_project(tmp_path):
    """Its tests pass, what does not apply is skipped with what is missing; a wrong model fails in them."""
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-m", "pytest", "-rs", "-q", "-p", "no:cacheprovider"]
    options = {"cwd": tmp_path, "env": subprocess_environment(tmp_path), "capture_output": True, "text": True}
    result = subprocess.run(command, **options, timeout=300)
    assert result.returncode == 0, result.stdout
    assert "not applicable: needs score_rows()" in result.stdout
    passed, skipped = map(int, re.search(r"(\d+) passed, (\d+) skipped", result.stdout).groups())
    assert passed > 30
    assert skipped > 10

    model = tmp_path / "my_model.py"
    model.write_text(
        model.read_text().replace("quality(x, y) - quality(x, ref) for", "len(outputs) * quality(x, y) for")
    )
    more = ["-o", "pit_invariants=batch_size order_wl_ww survives_case"]
    result = subprocess.run([*command, *more], **options, timeout=300)
    assert result.returncode == 1
    assert "batch_size: violated: gap in a batch: " in result.stdout
    assert "pit check MODULE:NAME --replay " in result.stdout
    assert "1 failed, 2 passed" in result.stdout


@pytest.mark.slow
def test_a_run_is_checked_on_its_eval_fold(tmp_path):
    """R_PIT, R_P and a policy of a tiny run, from the command line."""

    def pit(*words):
        command = [sys.executable, "-m", "pit", *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, env=subprocess_environment(tmp_path), capture_output=True, text=True, timeout=1800
        )

    assert pit("data", "prepare", "tiny", "--out", "run").returncode == 0
    for stage in (("reward", "gap"), ("reward", "quality"), ("sft", "policy")):
        assert pit(*stage, "--run", "run").returncode == 0
    few = ["--examples", 3, "--rows", 10]
    for stage in ("reward-gap", "reward-quality"):
        result = pit("check", "run", "--stage", stage, *few)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "0 violated of " in result.stdout
    result = pit("check", "run", "--stage", "sft-policy", *few, "--invariant", "exact")
    assert result.returncode == 0, result.stdout + result.stderr
    result = pit("check", "run", "--samples-of", "sft-policy", *few, "--invariant", "accuracy")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "samples of sft-policy, ordered by the oracle" in result.stdout
    refused = pit("check", "run", "--samples-of", "reward-gap")
    assert refused.returncode == 1
    assert "--samples-of reward-gap: is no policy of a run; choose one of sft-policy," in refused.stderr
    refused = pit("check", "run", "--stage", "speed")
    assert refused.returncode == 1
    assert "stage 'speed' of run: trains no reward model; choose one of reward-quality, reward-gap," in refused.stderr
