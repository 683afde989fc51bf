"""`pit check` end to end: output, files, exit status, replays, and the errors of bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pit.testing.command import check
from pit.testing.errors import CheckError

pytest_plugins = ["pytester"]

MODELS = '''
import numpy as np

def good(prompts, outputs, references):
    return np.array([words(y) - words(r) for y, r in zip(outputs, references, strict=True)], np.float32)

def words(text):
    return min(len(set(text.split())), 9) - 0.1 * len(text.split())

def by_batch(prompts, outputs, references):
    return good(prompts, outputs, references) / np.float32(len(outputs))

class Policy:
    """A policy, which has no gap."""

    def draw(self, prompts, temperature, seed):
        return None

policy = Policy()
number = 3
'''

PAIRS = [
    ("Why is it so?", "Because of a long and simple reason.", "So what?"),
    ("How many?", "There are two of them here.", "No no no."),
    ("Who was it?", "It was her brother.", "Nobody."),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Return a folder with models and pairs, and make it the working directory."""
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
    files = ["--json", "a.json", "--html", "a.html"]
    result = run("made_up_models:good", "--data", "pairs.jsonl", "--examples", 5, *files)
    assert result.exception is None, result.output
    assert "0 violated of " in result.output
    assert re.search(r"batch_size .* held .* 5 ", result.output)
    assert "needs score_rows()" in result.output
    assert re.search(r"accuracy .* 1\.000 \[0\.439, 1\.000\]", result.output)
    assert not (project / "pit-failures" / "batch_size.json").exists()
    report = json.loads((project / "a.json").read_text())
    by_name = {result["name"]: result for result in report["results"]}
    assert (report["model"], report["data"], report["seed"]) == ("made_up_models:good", "pairs.jsonl", 0)
    assert by_name["accuracy"]["status"] == "measured"
    assert by_name["accuracy"]["interval"]["n"] == 3
    assert by_name["accuracy"]["detail"] == "not distinguishable from 0.5"
    assert by_name["tree_is_paths"] == {
        **by_name["tree_is_paths"],
        "status": "not applicable",
        "detail": "needs score_rows()",
        "examples": 0,
        "interval": None,
    }
    page = (project / "a.html").read_text()
    assert all(f'<td class="name">{name}' in page for name in by_name)
    assert "http" not in page
    assert re.search(r"resists_flattery .* \d\.\d{3} .* \d\.\d{3} .* -?\d\.\d{3} \[", result.output)
    assert re.search(r"all \(3\) .* 1\.000 ", result.output)


def test_a_baseline_fails_on_what_got_worse_alone(project):
    """A violation that the baseline has too is accepted, a new one is not."""
    words = ["--data", "pairs.jsonl", "--examples", 30, "--invariant", "batch_size", "--invariant", "accuracy"]
    assert run("made_up_models:good", *words, "--json", "good.json").exit_code == 0
    assert run("made_up_models:by_batch", *words, "--json", "bad.json").exit_code == 1
    worse = run("made_up_models:by_batch", *words, "--baseline", "good.json")
    assert worse.exit_code == 1
    assert re.search(r"batch_size .* held .* violated .* worse", worse.output)
    assert worse.output.endswith("1 of 2 results are clearly worse than in good.json\n")
    same = run("made_up_models:by_batch", *words, "--baseline", "bad.json")
    assert same.exit_code == 0
    assert same.output.endswith("0 of 2 results are clearly worse than in bad.json\n")
    other = run("made_up_models:good", *words, "--rows", 2, "--baseline", "good.json")
    assert isinstance(other.exception, CheckError)
    assert "was measured on other rows (3 of pairs.jsonl, here 2 of pairs.jsonl)" in str(other.exception)


def test_a_badge_is_written_and_its_line_printed(project):
    result = run("made_up_models:good", "--invariant", "batch_size", "--examples", 2, "--badge", "check.svg")
    assert "![pit check: 1 held](check.svg)\n" in result.output
    assert "<title>pit check: 1 held</title>" in (project / "check.svg").read_text()


def test_a_violation_ends_with_status_1_and_is_replayed(project):
    options = ["--invariant", "batch_size", "--examples", 30]
    result = run("made_up_models:by_batch", *options)
    assert result.exit_code == 1
    assert "batch_size: violated: gap in a batch: " in result.output
    command = "pit check made_up_models:by_batch --replay pit-failures/batch_size.json"
    assert f": {command}" in result.output
    assert "1 violated of 1 in " in result.output

    again = run(*command.split()[2:])
    assert again.exit_code == 1
    assert "batch_size: violated: gap in a batch: " in again.output
    repaired = run("made_up_models:good", "--replay", "pit-failures/batch_size.json")
    assert repaired.exit_code == 0
    assert repaired.output.endswith("batch_size: held\n")
    other = run("made_up_models:policy", "--replay", "pit-failures/batch_size.json")
    assert isinstance(other.exception, CheckError)
    assert re.search(r"pit-failures/batch_size.json: .* batch_size, which needs gap\(\);", str(other.exception))


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["nowhere"], r"nowhere: .*config\.json.* MODULE:NAME"),
        (["made_up_models:number"], r"made_up_models:number: is of type int, must be a scorer"),
        (["made_up_models:good", "--invariant", "speed"], r"--invariant speed: .*exact.*batch_size"),
        (["made_up_models:good"], r"no --data: holds 0 pairs, must hold at least 2"),
        (["made_up_models:good", "--data", "prompts.jsonl"], r"prompts\.jsonl: .*format.*a better and a worse answer"),
        (
            ["made_up_models:good", "--data", "empty.jsonl"],
            r"empty\.jsonl: none of 1 rows is a pair \(1 empty answer\)",
        ),
        (
            ["made_up_models:good", "--data", "pairs.jsonl", "--samples-of", "rl-policy"],
            r"--samples-of rl-policy: .*--data pairs\.jsonl",
        ),
        (
            ["made_up_models:good", "--samples-of", "rl-policy"],
            r"--samples-of rl-policy: made_up_models:good is not the folder of a run; .*--data",
        ),
        (["made_up_models:good", "--sampler"], r"--sampler: made_up_models:good has no samples; name a policy"),
        (["made_up_models:good", "--baseline", "pairs.jsonl"], r"pairs\.jsonl: does not hold a report of `pit check"),
        (
            ["made_up_models:good", "--json", "a", "--badge", "a"],
            r"--json and --badge = a: must be two files; name another one",
        ),
        (["made_up_models:good", "--replay", "pairs.jsonl"], r"--replay pairs\.jsonl: .*JSONDecodeError"),
    ],
)
def test_bad_input_is_refused(project, words, pattern):
    (project / "prompts.jsonl").write_text('{"prompt": "why"}')
    (project / "empty.jsonl").write_text('{"prompt": "why", "chosen": "", "rejected": "a"}')
    result = run(*words)
    assert isinstance(result.exception, CheckError)
    assert re.match(pattern, str(result.exception)), str(result.exception)


def subprocess_environment(folder):
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("COV_")},
        "JAX_PLATFORMS": "cpu",
        "PIT_CACHE": str(folder / "cache"),
    }


EXAMPLE = Path(__file__).parents[2] / "examples" / "reward_model_tests"


def copy_example(folder):
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())


def test_the_example_project_passes_its_own_tests(pytester):
    """pytest finds the plugin by its entry point; tests that do not apply are skipped with the missing method."""
    copy_example(pytester.path)
    result = pytester.runpytest_inprocess("-rs", "-q", "-p", "no:cacheprovider")
    outcomes = result.parseoutcomes()
    assert not outcomes.keys() & {"failed", "errors"}, result.stdout.str()
    assert outcomes["passed"] > 30
    assert outcomes["skipped"] > 10
    result.stdout.fnmatch_lines(["*not applicable: needs score_rows()*"])


@pytest.mark.slow
def test_the_example_project_in_a_new_process(tmp_path):
    """Nothing of this process, such as its checks of types or its imports, is needed."""
    copy_example(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    options = {"cwd": tmp_path, "env": subprocess_environment(tmp_path), "capture_output": True, "text": True}
    result = subprocess.run(command, **options, timeout=300)
    assert result.returncode == 0, result.stdout


def test_a_wrong_model_fails_in_the_example_project(pytester):
    """The settings select the invariants; a violation is printed with the command that checks it again."""
    copy_example(pytester.path)
    model = pytester.path / "my_model.py"
    right, wrong = "quality(x, y) - quality(x, ref) for", "len(outputs) * quality(x, y) for"
    assert right in model.read_text()
    model.write_text(model.read_text().replace(right, wrong))
    names = "pit_invariants=batch_size order_wl_ww survives_case"
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-o", names)
    result.assert_outcomes(failed=1, passed=2)
    result.stdout.fnmatch_lines(["*batch_size: violated: gap in a batch: *", "*pit check MODULE:NAME --replay *"])
    assert (pytester.path / "pit-failures" / "batch_size.json").is_file()


def test_a_floor_of_the_settings_is_checked(pytester):
    """A scorer that is always right is at 1; a floor above that fails, and a setting without a number is refused."""
    copy_example(pytester.path)
    options = ["-q", "-p", "no:cacheprovider", "-o", "pit_invariants=order_wl_ww", "-o"]
    result = pytester.runpytest_inprocess(*options, "pit_floors=order_wl_ww=1.5")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*order_wl_ww: * lies below 1.5; *"])
    refused = pytester.runpytest_inprocess(*options, "pit_floors=order_wl_ww")
    refused.assert_outcomes(failed=1)
    refused.stdout.fnmatch_lines(["*pit_floors: 'order_wl_ww' *NAME=NUMBER*"])


@pytest.mark.slow
def test_a_run_is_checked_on_its_eval_fold(project):
    """R_PIT, R_P and a policy of a tiny run."""

    def pit(*words):
        command = [sys.executable, "-m", "pit", *map(str, words)]
        return subprocess.run(
            command, cwd=project, env=subprocess_environment(project), capture_output=True, text=True, timeout=1800
        )

    assert pit("data", "prepare", "tiny", "--out", "run").returncode == 0
    for stage in ("reward-gap", "reward-quality", "sft-policy"):
        assert pit(stage, "--run", "run").returncode == 0
    few = ["--examples", 3, "--rows", 10]
    for stage in ("reward-gap", "reward-quality"):
        result = run("run", "--stage", stage, *few)
        assert result.exit_code == 0, result.output
        assert "0 violated of " in result.output
    result = run("run", "--stage", "sft-policy", *few, "--invariant", "exact")
    assert result.exit_code == 0, result.output
    result = run("run", "--samples-of", "sft-policy", *few, "--invariant", "accuracy")
    assert result.exit_code == 0, result.output
    assert "samples of sft-policy, ranked by the oracle" in result.output
    for words, pattern in (
        (["--samples-of", "reward-gap"], r"--samples-of reward-gap: .* sft-policy,"),
        (["--stage", "speed"], r"--stage speed: .* reward-quality, reward-gap"),
    ):
        refused = run("run", *words)
        assert isinstance(refused.exception, CheckError)
        assert re.match(pattern, str(refused.exception)), str(refused.exception)


def test_a_check_without_time_says_what_it_left_out_and_is_a_baseline(project):
    words = ["made_up_models:good", "--data", "pairs.jsonl", "--invariant", "accuracy"]
    short = run(*words, "--minutes", 1e-9, "--json", "short.json")
    assert "figures are of 2 of 3 rows, for which there was time\n" in short.output
    again = run(*words, "--baseline", "short.json")
    assert again.exit_code == 0, again.exception
    assert "figures are of" not in again.output
    assert again.output.endswith("0 of 1 results are clearly worse than in short.json\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "the import of broken raised SyntaxError: invalid syntax"),
        ("raise ValueError('no key')", "the import of broken raised ValueError: no key; mend the module"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_error(project, text, message):
    (project / "broken.py").write_text(text)
    result = run("broken:f", "--data", "pairs.jsonl")
    assert isinstance(result.exception, CheckError)
    assert message in str(result.exception)


def test_a_folder_that_holds_neither_a_model_nor_a_run(project):
    (project / "odd").mkdir()
    (project / "odd" / "config.json").write_text("{}")
    result = run("odd", "--data", "pairs.jsonl")
    assert isinstance(result.exception, CheckError)
    assert str(result.exception) == (
        "odd: its config.json names no architecture of a model, and it is not the folder of a run (no store, no "
        "stages); give the folder of a run, or of a transformers sequence classifier"
    )
