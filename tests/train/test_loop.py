"""The loop: what it saves and when, and that an interrupted run resumed later ends in the same bits."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit.config import OptimizerConfig
from pit.errors import PitError
from pit.losses.total import Total
from pit.train.checkpoint import Checkpoints
from pit.train.log import PROGRESS_VARIABLE, StageLog
from pit.train.loop import Interrupted, InterruptFlag, Schedule, StepError, run_steps
from pit.train.update import Update, make_optimizer

STEPS = 6


def loss(params, batch):
    return Total(jnp.sum((params["w"] - batch["x"]) ** 2), jnp.float32(1.0)), {}


UPDATE = Update(loss, make_optimizer(OptimizerConfig(warmup_steps=2), STEPS))


@pytest.fixture(autouse=True)
def _json_progress(monkeypatch):
    monkeypatch.setenv(PROGRESS_VARIABLE, "json")


class Counter:
    """Work whose feed is a counter that is saved, and which may be a reason to stop or send a signal."""

    def __init__(self, restored, *, interrupt_at, number, halt_at, fail_at=None, unmeasured_at=None):
        self.feed = 0 if restored is None else restored.loader["feed"]
        assert restored is None or restored.controllers["steps"] == self.feed
        self._interrupt_at, self._number, self._halt_at = interrupt_at, number, halt_at
        self._fail_at, self._unmeasured_at = fail_at, unmeasured_at

    def step(self, state):
        if self.feed + 1 == self._fail_at:
            raise StepError("no reward came")
        rng = np.random.default_rng(self.feed)
        self.feed += 1
        if self.feed == self._interrupt_at:
            os.kill(os.getpid(), self._number)
        return UPDATE(state, [{"x": jnp.asarray(rng.normal(size=3).astype(np.float32))}])

    def evaluate(self, state):
        if self.feed == self._unmeasured_at:
            raise StepError("no reward came")
        return {"norm": float(jnp.sum(state.params["w"]))}

    def loader_state(self):
        return {"feed": self.feed}

    def controller_state(self):
        return {"steps": self.feed}

    def halt(self):
        return PitError(f"{self.feed} is enough") if self.feed == self._halt_at else None


def train(
    folder,
    *,
    interrupt_at=None,
    number=signal.SIGTERM,
    checkpoint_every=0,
    evaluate_every=0,
    halt_at=None,
    every=1,
    **fails,
):
    """Run, or resume from the newest checkpoint."""
    state = UPDATE.start({"w": jnp.ones(3)})
    with Checkpoints(folder / "checkpoints", keep=9) as checkpoints:
        restored = checkpoints.restore(state, "ab")
        work = Counter(restored, interrupt_at=interrupt_at, number=number, halt_at=halt_at, **fails)
        pending = [] if restored is None else restored.controllers["log"]
        state = state if restored is None else restored.state
        with StageLog(folder, "demo", resumed_step=int(state.step), every=every, pending=pending) as log:
            return run_steps(
                state,
                work,
                Schedule(STEPS, checkpoint_every, evaluate_every),
                log=log,
                checkpoints=checkpoints,
                meta=lambda: {"hash": "ab", "tokens": 0, "fed": work.feed},
            )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("number", "every"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, number, every):
    whole = train(tmp_path / "whole", every=every)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=f"^stopped after step 3 of {STEPS}$"):
        train(tmp_path / "cut", interrupt_at=3, number=number, every=every)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    resumed = train(tmp_path / "cut", every=every)
    for one, two in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, two)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_checkpoints_and_evaluations_come_when_they_are_due(tmp_path):
    train(tmp_path, checkpoint_every=4, evaluate_every=3)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == [4, 6]
    assert [line["step"] for line in lines(tmp_path) if "eval/norm" in line] == [3, 6]
    with Checkpoints(tmp_path / "checkpoints", keep=9) as checkpoints:
        restored = checkpoints.restore(UPDATE.start({"w": jnp.ones(3)}), "ab")
    # The values beside the weights are those of the step that was saved.
    assert restored.meta["fed"] == 6


def test_a_finished_run_is_not_run_again(tmp_path):
    first = train(tmp_path)
    again = train(tmp_path)
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert int(again.step) == STEPS


def test_a_reason_to_stop_ends_the_loop_once_the_state_is_saved_and_again_at_once(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(PitError, match=r"^2 is enough$"):
        train(tmp_path / "cut", halt_at=2)
    saved = lines(tmp_path / "cut")
    assert [line["step"] for line in saved] == [1, 2]
    # Without a step: the reason stands.
    with pytest.raises(PitError, match=r"^2 is enough$"):
        train(tmp_path / "cut", halt_at=2)
    assert lines(tmp_path / "cut") == saved
    resumed = train(tmp_path / "cut")
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize(
    ("fails", "saved"),
    [({"fail_at": 1}, []), ({"fail_at": 4}, [3]), ({"unmeasured_at": 3}, [3]), ({"unmeasured_at": STEPS}, [])],
)
def test_a_step_that_cannot_be_taken_leaves_a_checkpoint_of_the_state_before_it(tmp_path, fails, saved):
    """At the last step nothing is saved: it is taken again, so that it is measured."""
    whole = train(tmp_path / "whole", evaluate_every=3)
    with pytest.raises(StepError, match=r"^no reward came$"):
        train(tmp_path / "cut", evaluate_every=3, **fails)
    assert saved_steps(tmp_path / "cut") == saved
    resumed = train(tmp_path / "cut", evaluate_every=3)
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert [line for line in lines(tmp_path / "cut") if line["step"] == STEPS] == [
        line for line in lines(tmp_path / "whole") if line["step"] == STEPS
    ]


def test_a_flag_raises_the_one_around_it_and_the_second_signal_is_nobodys() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with InterruptFlag() as outer:
            with InterruptFlag() as inner:
                os.kill(os.getpid(), signal.SIGTERM)
                assert (inner.raised, outer.raised, seen) == (True, True, [])
                os.kill(os.getpid(), signal.SIGTERM)
                assert seen == [signal.SIGTERM]
            with InterruptFlag() as next_one:
                assert not next_one.raised
            assert outer.raised
    finally:
        signal.signal(signal.SIGTERM, before)
