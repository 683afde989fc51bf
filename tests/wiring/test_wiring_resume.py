"""Joints of a resume: a stage that is stopped at any step and started again does what it would have done."""

import json
import math
from unittest import mock

import numpy as np
import pytest
from world import World, run_of, worked

from pit.config import KlConfig
from pit.data.curriculum import DrawLoader, read_history
from pit.errors import PitError
from pit.evaluate import gold
from pit.losses.rl import adapted_beta
from pit.rl.board import BoardStoppedError
from pit.stages import refresh
from pit.types import Source

RL = "rl-improver-0"
LAST = 6
SETTINGS = (
    f"rl_improver_0.steps={LAST}",
    "rl_improver_0.gap=symmetric",
    "rl_improver_0.curriculum.strategy=learnability",
    "rl_improver_0.curriculum.examples=8",
    "rl_improver_0.curriculum.lag=2",
    "rl_improver_0.kl.target=0.9",
    "rl_improver_0.running_scale=true",
    "rl_improver_0.evaluate_every=2",
    "board.every=2",
)
"""A curriculum that learns, an adaptive coefficient, a running scale, a board: everything that has a state."""


def stopped(name, step, *settings):
    """Return the world and the run of a stage that was stopped after a step, though it had gone on unsaved."""
    world, run = World(), run_of(*settings)
    world.work(run, name)
    for number in [number for number in world.saved[name] if number > step]:
        del world.saved[name][number]
    (run.stage_folder(name) / "done.json").unlink()
    world.asks.clear()
    world.groups.clear()
    return world, run


def resumed(name, step, *settings):
    """Return the world and the run of a stage that was stopped after a step, and done."""
    world, run = stopped(name, step, *settings)
    world.work(run, name)
    return world, run


def lines(run, name):
    """Return the metrics of a stage, without its times."""
    rows = (run.stage_folder(name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(row).items() if not key.endswith(("wait_s", "per_s"))} for row in rows
    ]


def record(run, name):
    return json.loads((run.stage_folder(name) / "done.json").read_text(encoding="utf-8"))


def visits(run):
    return [(visit.draws.step, visit.draws.ids.tolist(), visit.draws.sources.tolist()) for visit in history(run)]


def history(run):
    return read_history(run.stage_folder(RL))


def controllers(world, step=LAST):
    return world.saved[RL][step].controllers


def test_draws_resume_at_the_step_of_the_checkpoint():
    whole, run = worked(RL, *SETTINGS)
    assert [step for step, *_ in visits(run)] == list(range(LAST))
    for step in (1, 4):
        world, again = resumed(RL, step, *SETTINGS)
        assert visits(again) == visits(run)
        samples = [ask for ask in world.asks if ask.n > 1]
        assert [(ask.seed, ask.ids) for ask in samples] == [
            (ask.seed, ask.ids) for ask in [ask for ask in whole.asks if ask.n > 1][-len(samples) :]
        ]
        assert [visit.gap.tolist() for visit in history(again)] == [visit.gap.tolist() for visit in history(run)]


def test_controllers_and_board_resume_with_the_same_values():
    whole, _ = worked(RL, *SETTINGS)
    for step in (1, 4):
        world, _ = resumed(RL, step, *SETTINGS)
        assert controllers(world) == controllers(whole)
    betas = [controllers(whole, step)["beta"] for step in range(1, LAST + 1)]
    counts = [controllers(whole, step)["scores"][0] for step in range(1, LAST + 1)]
    assert len(set(betas)) == LAST
    assert counts == [8 * step for step in range(1, LAST + 1)]
    assert [controllers(whole, step)["board"]["step"] for step in range(1, LAST + 1)] == list(range(1, LAST + 1))


def test_metrics_after_the_resumed_step_are_written_once():
    whole, run = worked(RL, *SETTINGS)
    for step in (1, 4):
        _, again = resumed(RL, step, *SETTINGS)
        assert lines(again, RL) == lines(run, RL)
    trained = [line["step"] for line in lines(run, RL) if "loss" in line]
    assert trained == list(range(1, LAST + 1))
    assert [line["step"] for line in lines(run, RL) if "eval/objective/kl" in line] == [2, 4, 6]
    assert record(run, RL)["tokens"] == whole.saved[RL][LAST].meta["tokens"]


def test_tokens_are_counted_over_the_whole_stage():
    _, run = worked(RL, *SETTINGS)
    _, again = resumed(RL, 4, *SETTINGS)
    assert record(again, RL)["tokens"] == record(run, RL)["tokens"]


def test_supervised_stages_resume_with_the_next_step_of_their_loader():
    for name, settings in (
        ("sft-policy", ("sft_policy.steps=7",)),
        ("refresh-gap", ("refresh.prompts=8", "refresh.steps=7", "references=policy")),
    ):
        results = []
        for step in (None, 3):
            world, run = World(), run_of(*settings)
            if name == "refresh-gap":
                with world.watched("refresh-pairs"):
                    refresh.make_pairs(run, gold.labeller_of(run))
            world.work(run, name)
            if step is not None:
                for number in [number for number in world.saved[name] if number > step]:
                    del world.saved[name][number]
                world.groups.clear()
                world.work(run, name)
            tokens = [arrays["token"] for group in world.of(name) for arrays in group.arrays]
            results.append((tokens, lines(run, name), record(run, name)["tokens"]))
        (all_tokens, all_lines, count), (tokens, more_lines, again) = results
        assert len(all_tokens) == 7 == len(tokens) + 3
        for one, other in zip(all_tokens[3:], tokens, strict=True):
            np.testing.assert_array_equal(one, other)
        assert all_lines == more_lines
        # The mean of steps 1 to 5 is written at 5, though the process that resumed saw two of them.
        assert [line["step"] for line in all_lines if "loss" in line] == [5, 7]
        assert count == again


def test_held_out_pairs_are_not_trained_on():
    world, run = World(), run_of("refresh.prompts=24", "refresh.held_out_every=3", "refresh.data_share=0")
    with world.watched("refresh-pairs"):
        refresh.make_pairs(run, gold.labeller_of(run))
    world.work(run, "refresh-quality")
    pairs = refresh.read_pairs(run)
    trees = {
        i: [*x, world.closings[0], *b, world.closings[2], *w, world.closings[2]] for i, (x, b, w) in enumerate(pairs)
    }
    trained = present(trees, world.of("refresh-quality"))
    measured = present(trees, world.of("refresh-quality", "held out"))
    assert measured == {i for i in trees if i % 3 == 0}
    assert trained <= {i for i in trees if i % 3}
    assert len(trained) > 5


def present(trees, groups):
    """Return the trees whose tokens stand in some rows."""
    rows = np.concatenate([arrays["token"] for group in groups for arrays in group.arrays])
    return {i for i, tokens in trees.items() if stands(np.array(tokens, np.int32), rows)}


def stands(tokens, rows):
    windows = np.lib.stride_tricks.sliding_window_view(rows, len(tokens), axis=1)
    return bool((windows == tokens).all(axis=-1).any())


def test_labels_put_the_better_answer_first():
    run, world = run_of("refresh.prompts=16"), World()
    with world.watched("refresh-pairs"):
        count = refresh.make_pairs(run, gold.labeller_of(run))
    pairs, worth = refresh.read_pairs(run), gold.oracle_of(run)
    assert count == len(pairs) > 4
    prompts = {tuple(run.store.fold("rl").row(i)[0].tolist()) for i in range(16)}
    for x, better, worse in pairs:
        assert worth([x], [better])[0] > worth([x], [worse])[0]
        assert tuple(x) in prompts


def test_a_refused_step_teaches_the_controllers_nothing():
    worlds = {}
    for refused in (set(), {3}):
        world, run = World(), run_of(*SETTINGS)
        world.refused = refused
        world.work(run, RL)
        worlds[bool(refused)] = world
    taught, refusing = worlds[False], worlds[True]
    assert controllers(taught, 2) == {**controllers(refusing, 2), "log": controllers(taught, 2)["log"]}
    for name in ("beta", "scores"):
        assert controllers(refusing, 3)[name] == controllers(refusing, 2)[name] != controllers(taught, 3)[name]
    assert [controllers(refusing, step)["refused_in_a_row"] for step in (2, 3, 4)] == [0, 1, 0]


def test_refused_steps_in_a_row_are_counted_over_a_resume():
    """Two before and one after it are three, which end the stage."""
    world, run = World(), run_of(*SETTINGS)
    world.refused = {2, 3, 4}
    with pytest.raises(PitError, match="step 4"):
        world.work(run, RL)
    assert max(world.saved[RL]) == 3
    with pytest.raises(PitError, match="step 4"):
        world.work(run, RL)
    assert max(world.saved[RL]) == 3


def test_the_coefficient_follows_the_kl_of_its_own_step():
    whole, run = worked(RL, *SETTINGS)
    kl = KlConfig(target=0.9)
    penalties = {line["step"]: line["objective/kl_penalty"] for line in lines(run, RL) if "loss" in line}
    beta = 0.8
    for step in range(1, LAST + 1):
        beta = adapted_beta(beta, penalties[step], target=kl.target, gain=kl.gain)
        assert controllers(whole, step)["beta"] == pytest.approx(beta, rel=1e-6)


def test_held_out_evaluation_changes_nothing():
    whole, _ = worked(RL, *SETTINGS)
    never, run = worked(RL, *SETTINGS, "rl_improver_0.evaluate_every=0")
    for name in ("beta", "scores", "board"):
        assert controllers(never)[name] == controllers(whole)[name]
    assert visits(run) == visits(worked(RL, *SETTINGS)[1])


def test_held_out_evaluation_repeats_its_own_prompts_and_numbers():
    world, _ = worked(RL, *SETTINGS)
    calls = [(tuple(ask.ids), ask.seed) for ask in world.asks if ask.n > 1]
    repeated = {call for call in calls if calls.count(call) > 1}
    assert len(repeated) == 1
    assert calls.count(next(iter(repeated))) == 3
    assert next(iter(repeated))[0] == (0, 1, 2, 3)


def test_feedback_reaches_the_draws_that_it_is_about():
    """The scores that the curriculum learns from, and the gaps of the history, are of the samples of that prompt."""
    sent, real = [], DrawLoader.update

    def update(loader, draws, gaps):
        sent.append(gaps)
        real(loader, draws, gaps)

    world, run = World(), run_of(*SETTINGS)
    with mock.patch.object(DrawLoader, "update", update):
        world.work(run, RL)
    assert len(sent) == LAST
    for visit, gaps in zip(history(run), sent, strict=True):
        ids = visit.draws.ids.tolist()
        ask = next(ask for ask in world.asks if ask.n > 1 and ask.ids == ids)
        for g, example in enumerate(ids):
            row = [part.tolist() for part in run.store.fold("rl").row(example)]
            reference = row[1 if visit.draws.sources[g] == Source.BETTER else 2]
            assert ask.prefixes[g] == [*row[0], world.closings[0], *reference, world.closings[1]]
            expected = [symmetric(world, row[0], reference, tokens) for tokens in ask.tokens[g]]
            np.testing.assert_allclose(gaps[g], expected, atol=1e-4)
            assert visit.gap[g] == pytest.approx(np.mean(expected), abs=1e-4)


def symmetric(world, x, reference, tokens):
    """Return the symmetric gap of the scores of the world."""
    y = [int(token) for token in tokens if token and token != world.closings[2]]
    if y == reference:
        return 0.0
    one, other = (world.score("", tuple(map(tuple, path))) for path in ([x, reference, y], [x, y, reference]))
    return (one - other) / 2


STOP = ("board.truncated.limit=0", "board.truncated.action=stop")


def test_a_signal_beyond_a_limit_that_stops_ends_the_stage_with_that_step_saved():
    world, run = World(), run_of(*SETTINGS, *STOP)
    for _ in range(2):
        with pytest.raises(BoardStoppedError, match="truncated"):
            world.work(run, RL)
        done = max(world.saved[RL])
        assert done < LAST
        assert [step for step, *_ in visits(run)] == list(range(done))
    whole, finished = worked(RL, *SETTINGS)
    assert controllers(world, done)["beta"] == controllers(whole, done)["beta"]
    regardless = type(run)(run.folder, finished.config)
    regardless.__dict__.update(tokenizer=run.tokenizer, template=run.template, store=run.store, mesh=run.mesh)
    world.work(regardless, RL)
    assert visits(regardless) == visits(finished)
    assert math.isfinite(lines(regardless, RL)[-1]["eval/objective/kl"])
