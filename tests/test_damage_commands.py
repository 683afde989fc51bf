"""Commands on a finished run with a damaged file: they work, or end in one clear line and exit status 1."""

import contextlib
import itertools
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import ODD_FILES
from test_run import pit

from pit.cli import main
from pit.stages import reward, rl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    # What Orbax leaves behind after a failed read is collected later.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STAGE, DRAWN = reward.GAP.name, rl.IMPROVER_0.name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the smallest recipe, and an input without lines, with which models are loaded and no more."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    pit("run", "tiny", "--out", folder, timeout_s=2000)
    (folder / "none.jsonl").write_text("")
    return folder


def newest(run: Path, stage: str) -> Path:
    """Return the folder of the newest checkpoint of a stage."""
    folder = run / "stages" / stage / "checkpoints"
    return max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def files(run: Path) -> Iterator[tuple[Path, list[list[str]]]]:
    """Yield every file that is read back, with the commands that read it; RUN stands for the folder."""
    improve = ["improve", "--run", "RUN", "--input", "RUN/none.jsonl"]
    curriculum = ["data", "curriculum", "--run", "RUN", "--stage", DRAWN]
    yield (
        run / "config.json",
        [improve, ["check", "RUN", "--invariant", "nothing"], [STAGE, "--run", "RUN"], curriculum],
    )
    yield run / "prepared.json", [["data", "prepare", "tiny", "--out", "RUN"]]
    yield run / "tokenizer.json", [improve]
    yield run / "store" / "manifest.json", [improve, ["data", "check", "RUN/store", "--full"], curriculum]
    yield run / "results.json", [["report", "--run", "RUN"]]
    for stage in (STAGE, DRAWN):
        folder = run / "stages" / stage
        yield folder / "done.json", [improve]
        yield folder / "metrics.jsonl", [["report", "--run", "RUN"], [stage, "--run", "RUN"]]
        for file in sorted(newest(run, stage).rglob("*")):
            if file.is_file():
                yield file, [[stage, "--run", "RUN"], improve]
    yield run / "stages" / DRAWN / "draws.jsonl", [curriculum, [DRAWN, "--run", "RUN"]]


@contextlib.contextmanager
def holding(run: Path, file: Path, content: bytes, *, resumed: str | None) -> Iterator[None]:
    """Let a file hold something else; a stage that resumes is not finished meanwhile."""
    before, done = file.read_bytes(), run / "stages" / (resumed or "") / "done.json"
    record = done.read_bytes() if resumed else b""
    logs = {path: path.read_bytes() for path in run.glob("stages/*/*.jsonl")}
    try:
        file.write_bytes(content)
        if resumed and file != done:
            done.unlink()
        yield
    finally:
        for path, lines in logs.items():
            path.write_bytes(lines)
        if resumed:
            done.write_bytes(record)
        file.write_bytes(before)


def test_a_command_on_a_damaged_run_works_or_ends_in_one_clear_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused: dict[str, int] = {}
    odd = itertools.cycle(ODD_FILES)
    for file, commands in list(files(run)):
        content = file.read_bytes()
        for words in commands:
            for other in (b"", content[: len(content) // 2], content[:-1], next(odd), next(odd)):
                resumed = words[0] if words[0] in (STAGE, DRAWN) else None
                with holding(run, file, other, resumed=resumed):
                    status = ended([word.replace("RUN", str(run)) for word in words])
                said = capsys.readouterr().err
                where = (file.relative_to(run), words, other[:20], said[-600:])
                assert "Traceback" not in said, where
                assert "did not expect" not in said, where
                assert status in (0, 1), where
                assert said.count("pit: error: ") == status, where
                refused[file.name] = refused.get(file.name, 0) + status
    for name in ("config.json", "prepared.json", "tokenizer.json", "manifest.json", "results.json", "done.json"):
        assert refused[name] >= 3, name
    assert refused["metadata"] >= 20


def ended(words: list[str]) -> int:
    """Return the exit status of a command."""
    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_what_a_message_advises_mends_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file once: damaged, refused, deleted as the message says, made again by the command that it names."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("tensorboard"))
    improve = ["improve", "--run", str(copy), "--input", str(copy / "none.jsonl")]
    prepare = ["data", "prepare", "--config", str(copy / "config.json"), "--out", str(copy)]
    cases = [
        (f"stages/{STAGE}/done.json", improve, [STAGE, "--run", str(copy)]),
        ("config.json", improve, ["run", "tiny", "--out", str(copy)]),
    ]
    for name, words, remedy in cases:
        file = copy / name
        file.write_bytes(b"")
        assert ended(words) == 1
        said = capsys.readouterr().err
        assert "delete it" in said
        file.unlink()
        if remedy:
            assert ended(remedy) == 0
        assert ended(words) == 0, name
        assert file.stat().st_size
    (copy / "tokenizer.json").write_bytes(b"{")
    assert ended(improve) == 1
    assert f"`{shlex.join(['pit', *prepare])}`" in capsys.readouterr().err
    assert ended(prepare) == 0
    assert ended(improve) == 0
    # Nothing else says what the stages were trained on.
    (copy / "prepared.json").write_bytes(b"")
    assert ended(prepare) == 1
    assert "put it back, or choose another folder: --out OTHER" in capsys.readouterr().err
