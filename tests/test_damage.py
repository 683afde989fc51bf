"""Every file that PIT reads back, damaged in any way, is read or refused in one clear line; nothing else happens."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax.numpy as jnp
import pytest
from damage import ODD_FILES, damaged
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pit import report
from pit.cli.failures import message_of
from pit.config import override
from pit.data._core import CoreError
from pit.data.chat import ChatFormat
from pit.data.curriculum.history import History
from pit.data.store import Store
from pit.errors import PitError
from pit.evaluate import schema
from pit.evaluate.stats import Delta, Interval
from pit.recipes.demo import tiny
from pit.report.curriculum import curriculum_table
from pit.report.metrics import read_curves
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.stages import prepare as preparing
from pit.stages import refresh, rl, sft
from pit.stages.look_back import look_back
from pit.stages.refresh import read_pairs
from pit.testing.search import load_example
from pit.train.log import PROGRESS_VARIABLE, StageLog
from pit.train.update import TrainState
from pit.types import Message

DRAWN = rl.IMPROVER_0.name
SAVED = sft.POLICY.name


class PreparedAgain(Exception):
    """The data would be prepared again, as their stamp is another one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run with every file that is read back; nothing in it is trained."""
    folder = tmp_path_factory.mktemp("made") / "run"
    run = Run(folder, override(tiny(), ["data.synthetic_rows=120", "refresh.prompts=8"]))
    with mock.patch.dict("os.environ", {PROGRESS_VARIABLE: "json"}):
        run.save_config()
        preparing.prepare(run)
        _fill(run)
        yield folder


def _fill(run: Run) -> None:
    for stage in (sft.POLICY, rl.IMPROVER_0):
        record = {"hash": stage.hash(run), "steps": 3, "tokens": 9, "seconds": 1.5, "compile_seconds": 0.5}
        path = run.stage_folder(stage.name)
        path.mkdir(parents=True)
        (path / "done.json").write_text(json.dumps({**record, "peak_memory_bytes": 1}, indent=2) + "\n")
        lines = [{"step": step, "loss": 1 / step, "objective/kl": 0.1} for step in range(1, 5)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draws = [{"step": step, "id": [0, step], "source": [1, 3], "gap": [0.5, -step / 8]} for step in range(4)]
    (run.stage_folder(DRAWN) / "draws.jsonl").write_text("".join(json.dumps(line) + "\n" for line in draws))
    pairs = [refresh.Pair([5, 6], [7], [8, 9])._asdict() for _ in range(3)]
    head = {"made_of": refresh.pairs_hash(run), "digest": refresh.digest(pairs)}
    (run.folder / "refresh").mkdir()
    (run.folder / "refresh" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (head, *pairs)))
    d, point = Delta(1.0, 0.5, 2.0, 4, 2, 1, 1, "m"), schema.QualityPoint(0, 1.0, 0.0, 2.0, None, 3.0)
    made = schema.Results(
        recipe="tiny",
        seeds=(0,),
        config_hash="ab",
        versions={"jax": "0.10"},
        delta={"improved_over_policy/oracle": d},
        quality={"raw": (point, schema.QualityPoint(1, 1.0, 0.0, 2.0, 1.0, 3.0))},
        accuracies={"length": Interval(0.5, 0.4, 0.6, 10)},
        sensitivity=(schema.SensitivityRow("m", "a", 0.5, 0.4, 0.6, 10),),
        stages=(schema.StageCost(SAVED, 1.0, 0.5, 3, 9, 1),),
        examples=(schema.Example("p", (schema.ExampleStep("a"), schema.ExampleStep("b", 0.5, True, None, 0))),),
    )
    schema.write_results(made, run.folder / schema.FILE_NAME)
    with run.checkpoints(SAVED, keep=1) as checkpoints:
        checkpoints.save(_state(), {"state": {"step": 3}, "draws": b"abc"}, {"log": [], "beta": 0.1}, META)
    items = [[[["user", "prompt"]], "output", None]]
    (run.folder / "example.json").write_text(json.dumps({"invariant": "x", "kind": "items", "example": items}) + "\n")

    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ strftime_now('%Y') }}"
    ChatFormat(source, {"bos_token": "<s>"}, (2, 3), "2026-01-02").save(run.folder / "chat" / "template.json")


META = {"hash": "ab", "tokens": 12}


@functools.cache
def _state() -> TrainState:
    params = {"a": jnp.ones((2, 3), jnp.float32)}
    return TrainState(jnp.int32(3), params, {"m": params})


# Readers: each reads a file as a command does, and uses what it holds.


def _resumed_log(run: Run) -> None:
    with StageLog(run.stage_folder(SAVED), SAVED, resumed_step=3):
        pass


def _resumed_history(run: Run) -> None:
    with History(run.stage_folder(DRAWN), 2):
        pass


def _drawn(run: Run) -> None:
    look = look_back(run, DRAWN)
    curriculum_table(look.title, look.visits, look.difficulty)


def _prepared(run: Run) -> None:
    with mock.patch.object(preparing, "read_preferences", side_effect=PreparedAgain):
        preparing.prepare(run)


def _restored(run: Run) -> None:
    with run.checkpoints(SAVED, keep=1) as checkpoints:
        restored = checkpoints.restore(_state(), "ab")
        assert restored is None or (restored.meta["tokens"], restored.controllers["log"]) == (12, [])
        if restored is not None:
            checkpoints.restore_params(_state().params, int(restored.state.step), "ab")


def _rendered(run: Run) -> None:
    format = Run(run.folder / "chat", run.config).format
    assert format is not None
    format.render([Message("user", "Why?")], opening=True)


def _record(stage: Stage) -> Callable[[Run], None]:
    def read(run: Run) -> None:
        record = stage.record(run)
        assert record is None or record["steps"] + record["seconds"] + record["tokens"] > -9

    return read


READERS: dict[str, tuple[str, Callable[[Run], object]]] = {
    "config": ("config.json", lambda run: Run.open(run.folder)),
    "stamp": ("prepared.json", _prepared),
    "tokenizer": ("tokenizer.json", lambda run: run.tokenizer.encode("a b")),
    "chat format": ("chat/template.json", _rendered),
    "manifest": ("store/manifest.json", lambda run: Store.open(run.folder / "store").verify()),
    "record": (f"stages/{SAVED}/done.json", _record(sft.POLICY)),
    "metrics": (f"stages/{SAVED}/metrics.jsonl", lambda run: read_curves(run.stage_folder(SAVED) / "metrics.jsonl")),
    "log": (f"stages/{SAVED}/metrics.jsonl", _resumed_log),
    "draws": (f"stages/{DRAWN}/draws.jsonl", _drawn),
    "history": (f"stages/{DRAWN}/draws.jsonl", _resumed_history),
    "results": ("results.json", lambda run: report.render(run.folder)),
    "pairs": ("refresh/pairs.jsonl", read_pairs),
    "example": ("example.json", lambda run: load_example(run.folder / "example.json")),
}


def refused(folder: Path, file: Path, content: bytes, read: Callable[[Run], object]) -> str | None:
    """Return the message of a reader about a file with another content, None where it takes it."""
    before = file.read_bytes()
    run = Run(folder, _whole(folder).config)
    # All but the two that read it open the store once.
    run.__dict__["store"] = _whole(folder).store
    try:
        file.write_bytes(content)
        read(run)
    except PreparedAgain:
        return None
    except (PitError, CoreError, OSError) as error:
        return message_of(error)
    finally:
        file.write_bytes(before)
    return None


@functools.cache
def _whole(folder: Path) -> Run:
    return Run.open(folder)


def require_clear(message: str, file: Path) -> None:
    assert "\n" not in message
    assert len(message) < 900
    assert str(file) in message or str(file.parent) in message
    assert len(message.split("; ")[-1]) > 8, "a remedy"


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=examples(30))
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_one_clear_line(folder: Path, name: str, data: st.DataObject) -> None:
    path, read = READERS[name]
    file = folder / path
    message = refused(folder, file, data.draw(damaged(file.read_bytes())), read)
    if message is not None:
        require_clear(message, file)


@pytest.mark.parametrize("name", READERS)
def test_an_empty_file_is_refused_where_something_must_be_in_it(folder: Path, name: str) -> None:
    path, read = READERS[name]
    message = refused(folder, folder / path, b"", read)
    # A stage that was killed before its first line has logged nothing.
    assert (message is None) == (name in ("metrics", "log", "history"))


def test_every_file_of_a_checkpoint_that_is_damaged_is_noticed(folder: Path) -> None:
    step = folder / "stages" / SAVED / "checkpoints" / "3"
    json_files = [step / name / "metadata" for name in ("loader", "controllers", "meta")]
    for file in json_files:
        for content in (b"", b"null", b"{}", b"[" * 100_000, b'{"hash": 3}', file.read_bytes()[:-1], b"\0" * 8):
            message = refused(folder, file, content, _restored)
            assert message is not None, (file, content[:20])
            assert f"{step}: cannot be read (" in message
            require_clear(message, step)


@pytest.mark.parametrize("content", ODD_FILES)
def test_a_checkpoint_that_cannot_be_listed_is_named(folder: Path, content: bytes) -> None:
    step = folder / "stages" / SAVED / "checkpoints" / "3"
    message = refused(folder, step / "_CHECKPOINT_METADATA", content, _restored)
    if message is not None:
        assert message.startswith(f"{step}: cannot be read (")
        require_clear(message, step)


@settings(max_examples=examples(20))
@given(st.data())
def test_values_of_a_checkpoint_other_than_those_saved_are_noticed(folder: Path, data: st.DataObject) -> None:
    step = folder / "stages" / SAVED / "checkpoints" / "3"
    file = step / data.draw(st.sampled_from(["loader", "controllers", "meta"])) / "metadata"
    content = data.draw(damaged(file.read_bytes()))
    message = refused(folder, file, content, _restored)
    if message is not None:
        require_clear(message, step)
    else:
        assert json.loads(content) == json.loads(file.read_bytes())


def test_the_readers_take_what_was_written(folder: Path) -> None:
    run = Run.open(folder)
    for path, read in READERS.values():
        assert refused(folder, folder / path, (folder / path).read_bytes(), read) is None
    _restored(run)
    assert sft.POLICY.done(run)
    assert len(read_pairs(run)) == 3
