"""Whatever goes wrong ends in one clear line, and every command that a message advises can be run as it is printed."""

import errno
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from pit import pipeline
from pit.cli import app, failures, main
from pit.cli.app import cli
from pit.cli.failures import REMEDIES, message_of
from pit.config import ConfigError, RunConfig, override, read_config
from pit.data.curriculum import read_history
from pit.errors import Interruption, PitError
from pit.evaluate.schema import read_results
from pit.pipeline import JOBS
from pit.recipes import recipe
from pit.recipes.demo import tiny
from pit.run.folder import Run
from pit.stages.graph import STAGES

ODD = "my runs/it's; rm -rf [x]"
"""A folder whose name a shell would take apart."""


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_operating_system_is_one_line_with_the_file_and_a_remedy(number: int) -> None:
    line = message_of(OSError(number, os.strerror(number), "some/file"))
    assert "some/file" in line
    assert "\n" not in line
    assert REMEDIES.get(number, "mend that") in line
    assert len(line.split("; ")[-1]) > 10


def test_an_error_of_the_operating_system_names_what_it_can() -> None:
    assert message_of(OSError(errno.EXDEV, "Invalid cross-device link", "a", None, b"b")) == (
        "a -> b: Invalid cross-device link; mend that, then run the command again"
    )
    assert message_of(OSError(errno.EDQUOT, "Disk quota exceeded", "f")) == (
        "the disk quota is used up (f); free some space or raise the quota, then run the command again"
    )
    assert message_of(OSError(errno.ENOSPC, "No space left on device")) == (
        "the disk is full; free some space, then run the command again"
    )
    assert message_of(OSError("gcsfs: no such bucket\nmore")) == (
        "gcsfs: no such bucket; check the file or address, then run the command again"
    )
    assert message_of(OSError(errno.EBADF, "Bad file descriptor", 7)) == (
        "Bad file descriptor; mend that, then run the command again"
    )


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int | str | None:
    """Return the exit status of a command in whose middle an error is raised."""

    # The place that is named is ours, in whatever folder the rest lies.
    theirs: dict[str, Any] = {"error": error}
    exec(compile("def fail(*_, **__):\n    raise error", "/home/me/pit/theirs.py", "exec"), theirs)
    monkeypatch.setattr(app, "make_config", theirs["fail"])
    with pytest.raises(SystemExit) as ended:
        main(["run", "tiny", "--out", ODD])
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "r/x"),
            "r/x: Read-only file system; mount it writable, or give",
        ),
        (MemoryError(), "the memory of this machine is used up; run fewer jobs"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nlong"),
            "RESOURCE_EXHAUSTED: Out of memory; lower packing.rows",
        ),
        (ValueError("UNKNOWN: Gloo all-reduce failed"), "UNKNOWN: Gloo all-reduce failed; another process of this run"),
        (RuntimeError("Unable to initialize backend 'tpu': no"), "Unable to initialize backend 'tpu': no; correct the"),
        (PitError("a = 3: must be 4"), "a = 3: must be 4"),
        (EOFError("Compressed file ended"), "EOFError at app.py"),
        (KeyError("x"), "KeyError at app.py"),
        (RuntimeError(), ": no message; PIT did not expect this: please report it with the output of `pit env` and "),
    ],
)
def test_an_error_from_anywhere_is_one_line(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, error) == 1
    said = capsys.readouterr().err
    # click ends the line of a terminal's ^D.
    said = said.removeprefix("\n") if isinstance(error, EOFError) else said
    assert said.startswith("pit: error: ")
    assert message in said
    assert said.count("\n") == 1


def test_the_traceback_of_an_unexpected_error_is_kept_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(failures.tempfile, "tempdir", str(tmp_path))
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    (file,) = tmp_path.iterdir()
    assert f"and {file}, which holds the traceback" in capsys.readouterr().err
    assert "Traceback (most recent call last)" in file.read_text()
    assert "ZeroDivisionError: division by zero" in file.read_text()
    # Where no file can be written, the line alone has to do.
    monkeypatch.setattr(failures.tempfile, "tempdir", str(tmp_path / "absent"))
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    assert capsys.readouterr().err.rstrip().endswith("please report it with the output of `pit env`")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interruption()])
def test_a_stopped_run_prints_the_command_that_resumes_it(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(monkeypatch, error) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    said, command = line.split("resume with:  ")
    assert said == "pit: stopped; "
    assert shlex.split(command) == ["pit", "run", "tiny", "--out", ODD]


def test_a_stopped_tool_is_run_again_and_not_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "open_run", stop)
    with pytest.raises(SystemExit):
        main(["improve", "--run", "a b"])
    assert "pit: stopped; run it again with:  pit improve --run 'a b'" in capsys.readouterr().err


def test_a_long_name_and_a_file_in_the_way_are_one_line(tmp_path: Path) -> None:
    """Real errors of a real file system, in a process of its own."""
    (tmp_path / "file").write_text("{}\n")
    for words in (
        ["data", "synthetic", "--out", "x" * 300],
        ["data", "prepare", "tiny", "--out", tmp_path / "file/run"],
    ):
        result = pit(*map(str, words))
        assert result.returncode == 1
        assert re.fullmatch(r"pit: error: .+: (File name too long|Not a directory); .+\n", result.stderr)


def pit(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pit", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("line", "progress"),
    [
        ('{"stage": "x", "done": 1, "total": 3, "text": "loss 1"}\n', (1, 3, "loss 1")),
        ("a note\n", None),
        ('{"stage"', None),
        ('{"stage": "a reward function printed this"}\n', None),
    ],
)
def test_a_line_of_a_child_that_is_no_progress_is_shown_and_stops_nothing(
    line: str, progress: tuple[int, int, str] | None
) -> None:
    """A reader that failed would leave the child waiting for ever."""
    assert pipeline._progress_in(line) == progress


# Advice.


def advised(text: str) -> Iterator[list[str]]:
    """Yield the words of every command in a message, as a shell would read them: in backticks, or to the line's end."""
    for command in re.findall(r"`(pit .+?)`(?![\w'])", text) or re.findall(r"\bpit [a-z].*", text):
        words = shlex.split(command)
        end = next((i for i, word in enumerate(words) if word in ("first", "again")), len(words))
        yield words[:end]


def parsed(words: list[str]) -> dict[str, object]:
    """Return the parameters of a command as click reads its words; raise where it would refuse them."""
    assert words[0] == "pit"
    command: click.Command = cli
    context = click.Context(cli, info_name="pit")
    rest = words[1:]
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, rest)  # type: ignore[assignment]
        assert command is not None, name
        context = click.Context(command, parent=context, info_name=name)
    made = command.make_context(words[1], list(rest))
    return {**made.params, "command": made.command.name}


def message(work: Callable[[], object]) -> str:
    with pytest.raises(PitError) as error:
        work()
    return str(error.value)


def test_every_command_that_a_message_advises_is_read_as_it_is_printed(tmp_path: Path) -> None:
    folder = tmp_path / ODD
    run = Run(folder, tiny())
    run.save_config()
    run.__dict__["store"] = type("Store", (), {"hash": "x"})
    stage = STAGES[0]
    done = run.stage_folder(stage.name) / "done.json"
    done.parent.mkdir(parents=True)
    done.write_text("")
    lost = message(lambda: Run.open(folder / "absent"))
    results = message(lambda: read_results(folder))
    cases = [
        (lost, {"command": "run", "out": folder / "absent"}),
        (results, {"command": "evaluate", "folder": folder}),
        (
            message(lambda: run.with_settings(["seed=3"])),
            {"command": "run", "out": folder.with_name(f"{folder.name}-2")},
        ),
        (message(lambda: run.tokenizer), {"command": "prepare", "out": folder}),
        (message(lambda: stage.record(run)), {"command": stage.name, "folder": folder}),
        (
            message(lambda: read_history(run.stage_folder("rl-improver-1"))),
            {"command": "curriculum", "stage": "rl-improver-1"},
        ),
    ]
    (folder / "results.json").write_text("{")
    cases.append((message(lambda: read_results(folder)), {"command": "evaluate", "folder": folder}))
    done.unlink()
    cases.append((message(lambda: stage.load(run)), {"command": stage.name, "folder": folder}))
    cases += [(f"`{job.command(run)}`", {"command": job.name, "folder": folder}) for job in JOBS]
    for text, expected in cases:
        (words,) = advised(text)
        read = parsed(words)
        assert {name: read[name] for name in expected} == expected, text
    (words,) = advised(cases[2][0])
    assert parsed(words)["settings"] == ("seed=3",)


def test_the_setting_that_includes_an_optional_job_is_a_setting() -> None:
    jobs = [job for job in JOBS if job.option]
    assert len(jobs) >= 4
    for job in jobs:
        assert job.included(override(tiny(), [job.option]))
        with pytest.raises(ConfigError, match=re.escape(f"--set {job.option}")):
            job.require(next(c for c in configs() if not job.included(c)))


def configs() -> Iterator[RunConfig]:
    yield override(tiny(), ["references=data", "refresh.prompts=0", "evaluate.gate=off"])
    yield override(tiny(), ["references=policy", "refresh.prompts=0"])


def options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            yield from options_of(inner)


def test_every_option_that_a_message_names_exists() -> None:
    """Read from the sources: strings that are not documentation."""
    import ast

    known = {"--help", *options_of(cli)}
    for job in JOBS:
        command = cli.get_command(click.Context(cli), job.name)
        assert command is not None
        known |= set(options_of(command))
    root = Path(pipeline.__file__).parent
    named = {}
    for file in root.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                named |= dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value), file)
    assert {"--set", "--data", "--out", "--full", "--strict"} <= named.keys()
    foreign = {"--merge", "--xla"}  # of llama-gguf-split, and how flags of XLA begin
    assert {option: str(file) for option, file in named.items() if option not in known | foreign} == {}


# What is read stays.


def test_the_input_of_improve_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = '{"prompt": "a"}\n'
    source = tmp_path / "in.jsonl"
    source.write_text(content)
    (tmp_path / "link.jsonl").symlink_to(source)
    os.link(source, tmp_path / "hard.jsonl")
    for name in ("in.jsonl", "./in.jsonl", "link.jsonl", "hard.jsonl"):
        with pytest.raises(SystemExit) as ended:
            main(["improve", "--run", "r", "--input", "in.jsonl", "--output", name])
        assert ended.value.code == 1
        said = capsys.readouterr().err
        reason = "is in.jsonl, which is read, and would be destroyed; name another file"
        assert said == f"pit: error: --output = {Path(name)}: {reason}\n"
        assert source.read_text() == content


@pytest.mark.parametrize("redirected", ["input", "output"])
def test_a_redirected_stream_that_is_the_other_side_is_refused(redirected: str, tmp_path: Path) -> None:
    """Otherwise `>>` would answer its own answers for ever, and an output would destroy what is read."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n')
    command = [sys.executable, "-m", "pit", "improve", "--run", "r"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with source.open("rb") as lines, source.open("a") as sink:
        streams: dict[str, Any] = {"stdin": lines} if redirected == "input" else {"stdout": sink}
        command += ["--output" if redirected == "input" else "--input", str(source)]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, check=False, **streams)
    assert result.returncode == 1
    assert result.stderr == f"pit: error: {source}: is both the input and the output; write into another file\n"
    assert source.read_text() == '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--plot", ""], "--plot = '': must name a file; for example --plot plot.png"),
        (["--plot", "a.png", "--rl-plot", "./a.png"], "--rl-plot = a.png: is the file of --plot too; name another one"),
    ],
)
def test_a_plot_without_a_file_of_its_own_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--run", "r", *options])
    assert capsys.readouterr().err == f"pit: error: {words}\n"


def test_an_evaluation_asks_for_its_trackers_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(pipeline, "collect", lambda run: pytest.fail("it began"))
    Run(tmp_path, recipe("tiny")).save_config()
    with pytest.raises(SystemExit):
        main(["evaluate", "--run", str(tmp_path), "--tracker", "wandb"])
    assert "trackers = 'wandb': its package is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "results.json", "stages/rl-policy/done.json", "store/manifest.json"])
def test_no_output_is_written_over_a_part_of_the_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    path = run / name
    path.parent.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    path.write_text("{}")
    for words in (
        ["improve", "--run", run, "--output", path],
        ["check", run, "--json", path],
        ["check", run, "--html", path],
    ):
        with pytest.raises(SystemExit):
            main([*map(str, words)])
        said = capsys.readouterr().err
        assert f"--{words[-2][2:]} = {path}: would destroy a part of {run}, which is read; name another file" in said
        assert path.read_text() == "{}"


def test_a_report_of_a_check_is_not_written_over_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("{}")
    for words in (
        ["--data", "pairs.jsonl", "--json", "pairs.jsonl"],
        ["--replay", "pairs.jsonl", "--html", "pairs.jsonl"],
    ):
        with pytest.raises(SystemExit):
            main(["check", "module:name", *words])
        assert "which is read, and would be destroyed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", "module:name", "--json", "x", "--html", "x"])
    assert "--json and --html = x: must be two files" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["data", "data/run"])
def test_a_run_does_not_lie_among_its_data(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for command in ("run", "data prepare"):
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "tiny", "--data", "data", "--out", out])
        assert ended.value.code == 1
        said = capsys.readouterr().err
        assert f"--out = {out}: lies in the data folder data, which would take the run's files for data" in said
        (words,) = (shlex.split(said.split("for example ")[1]),)
        assert words == ["--out", f"runs/{Path(out).name}"]
    assert list(Path("data").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["report", "--run", "r", "--plot"],
        ["report", "--run", "r", "--rl-plot"],
        ["data", "curriculum", "--run", "r", "--plot"],
        ["bench", "kernels", "--plot"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["a plot.svg", "plot", "plot.png.pdf"])
def test_a_plot_that_is_not_named_as_png_is_refused(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, name])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"{words[-1]} = {name!r}: must end in .png, because plots are PNG; for example {words[-1]} " in said
    again = shlex.split(said.split("for example ")[1])
    assert Path(again[1]).suffix == ".png"


def test_the_config_of_a_run_that_breaks_a_rule_is_named_with_its_file(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", tiny())
    run.save_config()
    path = run.folder / "config.json"
    for old, new, fault in (
        ('"seed": 0', '"seed": -1', "seed = -1: must be >= 0"),
        ('"seed": 0', '"sead": 0', "sead: is not a config field; did you mean seed?"),
        ('"seed": 0', '"seed": 1e400', "seed = inf: must be of type int"),
        ('"seed": 0', f'"workers": {"9" * 400}, "seed": [0]', "seed = [0]: must be of type int"),
    ):
        run.save_config()
        path.write_text(path.read_text().replace(old, new))
        said = message(lambda: Run.open(run.folder))
        assert said.startswith(f"{path}: {fault}")
        assert said.endswith(
            "; correct it, or delete it and repeat the command that started the run, which writes it again"
        )
        path.unlink()


CONTENTS = {
    "deep JSON": "[" * 100_000,
    "deep YAML": "{" * 3000 + "}" * 3000,
    "date": "seed: 2001-99-99",
    "long YAML number": "seed: " + "9" * 5000,
    "long JSON number": '{"seed": ' + "9" * 5000 + "}",
    "zero": "\0",
    "odd key": "? [1]\n: 2",
}


@pytest.mark.parametrize("text", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_config_file_of_any_content_is_one_clear_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    said = message(lambda: read_config(path, tiny()))
    assert said.startswith(f"{path}: ")
    assert len(said) < 1000
    assert "\n" not in said
