"""Refreshing the reward models: pairs of samples, who is preferred, how they are mixed with data, what is trained."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.config import ConfigError, FieldError, RefreshConfig, override
from pit.data.errors import DataError
from pit.data.packing import Layout
from pit.data.store import Fold
from pit.data.synthetic.describe import clean_answer
from pit.data.template import quality
from pit.data.tokens import Tokens
from pit.evaluate.gold import labeller_of, services
from pit.recipes.demo import tiny
from pit.rollout.sample import Sampler
from pit.run.folder import Run
from pit.run.stage import Services
from pit.seeds import Seed
from pit.stages import refresh, reward, rl, rl_iterated, supervised
from pit.stages.prepare import prepare
from pit.stages.refresh import Mix, Pair, has_pairs, labelled, make_pairs, read_pairs
from pit.types import Closings, Shards

pytestmark = pytest.mark.usefixtures("fresh_stages")

LAYOUT = Layout(closings=Closings.roles(1, 2, 3), pad=0, row_length=16, rows=4, trees=8)


class Rows(Fold):
    """Ten rows of data, each with a first token that no other has."""

    def __init__(self):
        pass

    def __len__(self):
        return 10

    def row(self, i):
        return tuple(np.array([token], np.int32) for token in (100 + i, 7, 8))


NEW = [Pair([200 + i], [7], [8]) for i in range(6)]


def longer(inputs, first, second):
    """Prefers the longer answer."""
    return np.array([np.sign(len(a) - len(b)) for a, b in zip(first, second, strict=True)], np.int64)


def larger(inputs, first, second):
    """Prefers the answer with the larger sum of tokens: lengths of samples are often equal."""
    sums = ([sum(answer.tolist()) for answer in answers] for answers in (first, second))
    return np.array([np.sign(a - b) for a, b in zip(*sums, strict=True)], np.int64)


def mix(**changes):
    config = dataclasses.replace(RefreshConfig(pairs=4, data_share=0.5), **changes)
    return Mix(Rows(), NEW, quality(), LAYOUT, config, shards=Shards.all_local(1), seed=Seed((3,)))


def prompts(batches):
    """First tokens of the trees of a step: the prompts, at least 200 in new pairs."""
    rows = [batch.local for batch in batches]
    return sorted(int(t) for batch in rows for t in batch.token[(batch.position == 0) & (batch.token > 99)])


def test_pairs_that_are_tied_or_equal_are_left_out_and_the_better_answer_comes_first():
    inputs, first, second = [[1], [2], [3], [4]], [[5], [6, 6], [7], [8]], [[5, 5], [6], [9], [8]]
    assert labelled(inputs, first, second, longer) == [Pair([1], [5, 5], [5]), Pair([2], [6, 6], [6])]
    always = lambda xs, a, b: np.ones(len(xs), np.int64)  # noqa: E731
    assert labelled([[4]], [[8]], [[8]], always) == []


def test_every_row_comes_once_an_epoch_and_shares_are_kept():
    made = mix(data_share=0.5)
    steps = [prompts(next(made)) for _ in range(15)]
    assert all(sum(p < 200 for p in step) == 2 for step in steps)
    old, new = ([p for step in steps for p in step if (p < 200) == data] for data in (True, False))
    # 30 draws are 3 epochs of 10 rows of data and 5 of 6 new pairs.
    assert sorted(old) == sorted(3 * list(range(100, 110)))
    assert sorted(new) == sorted(5 * list(range(200, 206)))
    assert steps[:5] != steps[5:10]
    assert all(p >= 200 for p in prompts(next(mix(data_share=0.0))))


@given(skipped=st.integers(0, 20))
def test_a_restored_mix_resumes_as_if_it_had_not_been_stopped(skipped):
    whole, cut = mix(), mix()
    for _ in range(skipped):
        next(whole)
    cut.restore(json.loads(json.dumps(whole.state())))
    for _ in range(3):
        assert prompts(next(whole)) == prompts(next(cut))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, synthetic_rows=150),
        refresh=dataclasses.replace(config.refresh, prompts=12, steps=4, pairs=8),
    )
    made = Run(tmp_path_factory.mktemp("run"), config)
    prepare(made)
    make_pairs(made, larger)
    return made


def with_settings(run, *settings):
    return Run(run.folder, override(run.config, settings))


def test_pairs_are_samples_labelled_once(run, capsys):
    pairs = read_pairs(run)
    assert 0 < len(pairs) <= 24
    asked = {tuple(run.fold("rl").row(i)[0].tolist()) for i in range(12)}
    assert {tuple(pair.prompt) for pair in pairs} <= asked
    assert all(sum(pair.better) > sum(pair.worse) for pair in pairs)
    before = (run.folder / "refresh" / "pairs.jsonl").read_bytes()
    assert make_pairs(run, lambda xs, a, b: -larger(xs, a, b)) is None
    assert refresh.PAIRS.done(run)
    refresh.PAIRS.work(run, services())
    assert "up to date" in capsys.readouterr().out
    assert (run.folder / "refresh" / "pairs.jsonl").read_bytes() == before


def test_pairs_of_other_settings_do_not_count(run):
    other = with_settings(run, "refresh.temperature=0.5")
    assert has_pairs(run)
    assert not has_pairs(other)
    with pytest.raises(DataError) as caught:
        refresh.GAP.work(other, Services())
    assert str(caught.value) == (
        f"{run.folder}/refresh/pairs.jsonl: holds no pairs of this config and data; run "
        f"`pit refresh-pairs --run {run.folder}` first"
    )


def test_a_labeller_without_an_opinion_is_an_error(run, monkeypatch):
    monkeypatch.setattr(Sampler, "answers", lambda self, model, ids, *_, **__: Tokens.of([[5]] * len(ids)))
    other = with_settings(run, "refresh.prompts=3")
    with pytest.raises(DataError, match=r"^refresh\.prompts = 3: the labeller called all pairs of answers ties"):
        make_pairs(other, lambda xs, a, b: np.zeros(len(xs), np.int64))


def test_pairs_need_a_labeller(run):
    with pytest.raises(ConfigError, match=r"^refresh-pairs: needs a labeller"):
        refresh.PAIRS.work(run, Services())


class _StopError(Exception):
    """Ends a stage before it trains."""


@pytest.mark.parametrize(("pairs", "expected"), [("five", 4 * 0.31326169 + 0.12692801), ("one", 0.12692801)])
@pytest.mark.parametrize("stage", [reward.GAP, refresh.GAP], ids=lambda stage: stage.name)
def test_the_gap_model_keeps_the_pairs_that_its_config_names_when_it_is_refreshed(
    run, stage, pairs, expected, monkeypatch
):
    losses = []

    def task(session, loss, batches, frozen, anchor):
        losses.append(loss)
        raise _StopError

    monkeypatch.setattr(supervised, "SupervisedTask", task)
    # r(w,l) = 2, r(w,w) = r(l,l) = 1, r(l,w) = 0: four differences of 1 and one of 2.
    monkeypatch.setattr(reward, "_scores", lambda *_: (jnp.array([[1.0, 0.0, 2.0, 1.0]]), jnp.array([True])))
    monkeypatch.setattr(refresh, "has_pairs", lambda run: True)
    with pytest.raises(_StopError):
        stage.work(with_settings(run, f"reward_gap.ordered_pairs={pairs}"), Services())
    (loss,) = losses
    assert float(loss({}, {})[0].sum) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [refresh.QUALITY, refresh.GAP], ids=lambda stage: stage.name)
def test_a_refreshed_model_starts_from_the_one_it_refreshes_and_is_trained(run, stage):
    stage.work(run, Services())
    record = json.loads((run.stage_folder(stage.name) / "done.json").read_text())
    assert (record["steps"], record["hash"]) == (4, stage.hash(run))
    before = stage.inputs(run.config)["start"].fresh(run).params
    with run.checkpoints(stage.name, keep=2) as checkpoints:
        after = checkpoints.restore_params(before, 4, record["hash"])
    # Four steps of at most 2e-3: near the model that it refreshes, and moved.
    moved = max(float(np.abs(np.asarray(after[k]) - np.asarray(before[k])).max()) for k in before)
    assert 0 < moved < 0.02


def test_the_oracle_labels_by_quality(run):
    label, template = labeller_of(run), run.template
    prompt = run.fold("rl").row(0)[0].tolist()
    clean = template.encode_answer(clean_answer(template.decode_prompt(prompt)[0].content))
    bad = template.encode_answer("cheers cheers")
    assert label([prompt] * 3, [clean, bad, bad], [bad, clean, bad]).tolist() == [1, -1, 0]


def test_without_an_oracle_there_is_no_labeller(run):
    with pytest.raises(FieldError) as caught:
        labeller_of(with_settings(run, "data.path=x"))
    assert (caught.value.path, caught.value.value) == ("refresh.prompts", 12)
    assert "only a synthetic task has an oracle" in caught.value.rule


def test_rewards_from_rl_1_on_are_the_refreshed_ones(run):
    whole = with_settings(run, "references=own").config
    stages = (rl.POLICY, rl.IMPROVER_0, rl_iterated.IMPROVER_1, rl_iterated.IMPROVER_2)
    plain = override(whole, ["refresh.prompts=0"])
    assert [stage.inputs(plain)["reward"] for stage in stages] == [reward.QUALITY, reward.GAP, reward.GAP, reward.GAP]
    assert [stage.inputs(whole)["reward"] for stage in stages] == [reward.QUALITY, reward.GAP, refresh.GAP, refresh.GAP]
    assert (refresh.last_quality(plain), refresh.last_quality(whole)) == (reward.QUALITY, refresh.QUALITY)
    assert refresh.GAP in rl_iterated.IMPROVER_1.needs(whole)
    assert set(refresh.GAP.needs(whole)) == {reward.GAP, rl.POLICY, rl.IMPROVER_0, refresh.PAIRS}
    assert refresh.GAP.inputs(whole)["start"] == reward.GAP
    assert refresh.QUALITY.inputs(whole)["start"] == reward.QUALITY


def test_a_file_of_own_answers_takes_the_place_of_sampling(tmp_path):
    path = tmp_path / "own.jsonl"
    words = ("red", "green", "blue", "green")
    rows = [
        {"prompt": f"Say {a}.", "chosen": f"It is {a}.", "rejected": f"It is {b}."}
        for a, b in itertools.pairwise(words)
    ]
    same = {"prompt": "Say x.", "chosen": "x", "rejected": "x"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, same)))
    config = override(tiny(), ["data.synthetic_rows=150", f"refresh.path={path}"])
    run = Run(tmp_path / "run", config)
    prepare(run)
    # Neither labels nor models are asked for.
    assert refresh.PAIRS.needs(config) == ()
    assert {role: stage.name for role, stage in refresh.GAP.inputs(config).items()} == {"start": "reward-gap"}
    assert refresh.last_quality(config) is refresh.QUALITY
    before = refresh.QUALITY.hash(run)
    refresh.PAIRS.work(run, Services())
    decode = run.template.decode_answer
    assert [(decode(pair.better), decode(pair.worse)) for pair in read_pairs(run)] == [
        (row["chosen"], row["rejected"]) for row in rows
    ]
    assert has_pairs(run)
    path.write_text(path.read_text().replace("blue", "black"))
    assert not has_pairs(run)
    assert refresh.QUALITY.hash(run) != before
    path.write_text(json.dumps(same) + "\n")
    with pytest.raises(DataError, match="none of its 1 rows can be used"):
        refresh.take_pairs(run, path)
    path.unlink()
    with pytest.raises(DataError, match=r"^refresh.path = .*own.jsonl': cannot be read \(No such file"):
        has_pairs(run)


def test_pairs_come_from_a_file_or_from_samples():
    with pytest.raises(FieldError, match="takes the place of sampling") as caught:
        RefreshConfig(prompts=8, path="own.jsonl")
    assert caught.value.path == "path"
