"""`--help` of every command, and `pit config`."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pit.cli import main
from pit.cli.app import cli
from pit.config import JudgeConfig, override, read_config
from pit.pipeline import EVALUATE, JOBS
from pit.recipes import RECIPES, recipe
from pit.recipes.demo import tiny
from pit.run.folder import Run


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*words, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


@pytest.mark.parametrize("words", [*commands(cli), *((job.name,) for job in JOBS)], ids=" ".join)
def test_help_says_what_a_command_does_and_keeps_the_lines_of_its_examples(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"]).output
    assert "\\b" not in shown
    assert "\\\\" not in shown
    what = shown.split("\n\n")[1].strip()
    assert len(what) >= 10
    after = shown.partition("Example")[2]
    if after:
        assert after.split("\n")[1].startswith("  "), "an example stands in a line of its own"


def test_help_teaches_the_tools_and_then_the_jobs_in_the_order_of_a_run() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert "pit run demo --out runs/demo" in shown
    tools, _, jobs = shown.partition("Jobs of a run")
    assert [line.split()[0] for line in jobs.splitlines()[1:] if line.startswith("  ") and line[2] != " "] == [
        job.name for job in JOBS
    ]
    for words in commands(cli):
        assert f"\n  {words[0]} " in tools


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rl-improver-9"])
    assert ended.value.code == 2
    assert "No such command 'rl-improver-9'" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["yaml", "json"])
def test_a_printed_config_reads_back_as_the_same(name: str, form: list[str], tmp_path: Path) -> None:
    settings = ["seed=3", "data.difficulty_column=none", "rl_improver_1.sources.better=2"]
    options = [word for setting in settings for word in ("--set", setting)]
    printed = CliRunner().invoke(cli, ["config", name, *options, *form])
    assert printed.exit_code == 0
    path = tmp_path / "mine"
    path.write_text(printed.output)
    expected = override(recipe(name), settings)
    assert read_config(path, recipe("tiny")) == expected
    # And through the command again, as a file of its own.
    again = CliRunner().invoke(cli, ["config", "--config", str(path), *form])
    assert again.output == printed.output


def test_settings_win_over_a_file_and_a_file_over_a_recipe(tmp_path: Path) -> None:
    path, printed = tmp_path / "mine.yaml", tmp_path / "printed.yaml"
    path.write_text("seed: 3\nrl_policy: {steps: 7, beta: 0.5}\n")
    result = CliRunner().invoke(cli, ["config", "tiny", "--config", str(path), "--set", "rl_policy.steps=9"])
    printed.write_text(result.output)
    expected = override(recipe("tiny"), ["seed=3", "rl_policy.steps=9", "rl_policy.beta=0.5"])
    assert read_config(printed, recipe("demo")) == expected


def test_a_judge_of_the_command_line_is_a_setting_that_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = Run(tmp_path, tiny()), []
    run.save_config()
    recorded = dataclasses.replace(EVALUATE, work=lambda run, services: seen.append(run.config.evaluate.judge))
    monkeypatch.setattr("pit.pipeline.JOBS", (recorded,))
    words = ["evaluate", "--run", str(tmp_path), "--judge-url", "http://x/v1", "--set", "evaluate.judge.prompts=9"]
    main([*words, "--judge-model", "m"])
    main(words[:3])
    assert seen == [JudgeConfig("http://x/v1", "m", prompts=9), None]
    assert Run.open(tmp_path).config == tiny()
    with pytest.raises(SystemExit):
        main(words)


def test_a_reward_of_the_command_line_is_that_of_every_rl_stage_and_settings_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--reward", "mine.py:score", "--set", "rl_policy.reward.function=none", "--json"]
    printed = json.loads(CliRunner().invoke(cli, ["config", "tiny", *options]).output)
    named = {name: section["reward"]["function"] for name, section in printed.items() if name.startswith("rl_")}
    file = f"{tmp_path / 'mine.py'}:score"
    assert named == {"rl_policy": None, **{f"rl_improver_{number}": file for number in range(3)}}
    printed = json.loads(CliRunner().invoke(cli, ["config", "tiny", "--reward", "pkg.mine:score", "--json"]).output)
    assert printed["rl_policy"]["reward"] == {
        "function": "pkg.mine:score",
        "model_weight": 1.0,
        "function_weight": 1.0,
        "scale": "none",
    }


@pytest.mark.parametrize("command", ["improve", "serve"])
def test_a_budget_leaves_no_choice_of_a_split(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--run", str(tmp_path), "--budget", "80", "--draws", "3", "--rank", "gap"])
    assert ended.value.code == 2
    assert "--budget chooses draws, passes and rules; leave out --draws, --rank." in capsys.readouterr().err


@pytest.mark.parametrize("command", [["config"], ["run"]])
def test_neither_recipe_nor_file_is_a_usage_error(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "--config FILE" in capsys.readouterr().err
