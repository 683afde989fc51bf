"""Metrics on disk: means by weight, lines after a resumed step dropped, a loss that is not finite refused."""

import json

import jax.numpy as jnp
import pytest

from pit.losses.total import Total
from pit.train.log import PROGRESS_VARIABLE, StageLog


@pytest.fixture(autouse=True)
def _json_progress(monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def total(value, weight):
    return Total(jnp.float32(value), jnp.float32(weight))


def test_a_logged_line_is_the_mean_over_its_steps(tmp_path, capsys):
    with StageLog(tmp_path, "demo", every=2) as log:
        log.step(1, 3, {"loss": total(2.0, 1.0), "fill": 0.5})
        log.step(2, 3, {"loss": total(4.0, 3.0), "fill": 1.0})
        log.step(3, 3, {"loss": total(9.0, 3.0), "nothing": total(0.0, 0.0)})
    assert lines(tmp_path) == [{"step": 2, "loss": 1.5, "fill": 0.75}, {"step": 3, "loss": 3.0, "nothing": 0.0}]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"stage": "demo", "done": 3, "total": 3, "text": "loss 3"}


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    with StageLog(tmp_path, "demo") as log:
        for step in (2, 4, 6):
            log.write(step, {"loss": 1.0})
            log.write(step, {"eval/loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "los')  # the line a killed process was writing
    with StageLog(tmp_path, "demo", resumed_step=4) as log:
        log.write(6, {"loss": 3.0})
    expected = [(2, "loss", 1.0), (2, "eval/loss", 2.0), (4, "loss", 1.0), (4, "eval/loss", 2.0), (6, "loss", 3.0)]
    assert lines(tmp_path) == [{"step": step, name: value} for step, name, value in expected]


def test_a_fresh_start_drops_every_line(tmp_path):
    with StageLog(tmp_path, "demo") as log:
        log.write(1, {"loss": 1.0})
    with StageLog(tmp_path, "demo"):
        pass
    assert lines(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value):
    with StageLog(tmp_path, "demo") as log, pytest.raises(FloatingPointError) as caught:
        log.step(7, 7, {"loss": total(value, 1.0)})
    assert str(caught.value).startswith(f"loss = {value} at step 7: training diverged; ")
    assert lines(tmp_path) == []
