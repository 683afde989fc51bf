"""Refreshing the reward models: pairs of samples, who is preferred, how they are mixed with data, what is trained."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit.config import ConfigError, RefreshConfig
from pit.data.errors import DataError
from pit.data.packing import Layout
from pit.data.store import Fold
from pit.data.synthetic.describe import clean_answer
from pit.data.template import quality
from pit.evaluate.gold import labeller_of
from pit.recipes.demo import tiny
from pit.stages.context import STAGES, Run, last_reward, needs_of, reward_of, stages_of
from pit.stages.prepare import prepare
from pit.stages.references import Sampling
from pit.stages.refresh import Mix, Pair, has_pairs, labelled, make_pairs, read_pairs, run_refresh
from pit.train.log import PROGRESS_VARIABLE

LAYOUT = Layout(closings=(1, 2, 3), pad=0, row_length=16, rows=4, trees=8)


class FreshRun(Run):
    """A run whose finished stages are fresh weights."""

    def trained(self, name):
        return self.model(name)


class Rows(Fold):
    """Ten rows of data, each told by its first token."""

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


def mix(**changes):
    config = dataclasses.replace(RefreshConfig(pairs=4, data_share=0.5), **changes)
    return Mix(Rows(), NEW, quality(), LAYOUT, config, shards=1, seed=3)


def prompts(batches):
    """First tokens of the trees of a step: the prompts, by which data and new pairs are told apart."""
    return sorted(int(t) for batch in batches for t in batch.token[(batch.position == 0) & (batch.token > 99)])


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
def test_a_restored_mix_goes_on_as_if_it_had_not_been_stopped(skipped):
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
    made = FreshRun(tmp_path_factory.mktemp("run"), config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROGRESS_VARIABLE, "json")
        prepare(made)
        make_pairs(made, longer)
        yield made


def test_pairs_are_samples_labelled_once(run, capsys):
    pairs = read_pairs(run)
    assert 0 < len(pairs) <= 24
    asked = {tuple(run.fold("rl").row(i)[0].tolist()) for i in range(12)}
    assert {tuple(pair.prompt) for pair in pairs} <= asked
    assert all(len(pair.better) > len(pair.worse) for pair in pairs)
    before = (run.folder / "refresh" / "pairs.jsonl").read_bytes()
    assert make_pairs(run, lambda xs, a, b: -longer(xs, a, b)) is None
    assert (run.folder / "refresh" / "pairs.jsonl").read_bytes() == before


def test_pairs_of_other_settings_do_not_count(run):
    other = FreshRun(
        run.folder, dataclasses.replace(run.config, refresh=dataclasses.replace(run.config.refresh, temperature=0.5))
    )
    assert has_pairs(run)
    assert not has_pairs(other)
    with pytest.raises(DataError) as caught:
        run_refresh(other, "refresh-gap")
    assert str(caught.value) == (
        f"{run.folder}/refresh/pairs.jsonl: holds no pairs of this config and data; run "
        f"`pit refresh pairs --run {run.folder}` first"
    )


def test_a_labeller_without_an_opinion_is_an_error(run, monkeypatch):
    monkeypatch.setattr(Sampling, "answers", lambda self, model, asked, temperature, seed: [[5]] * len(asked.ids))
    other = FreshRun(
        run.folder, dataclasses.replace(run.config, refresh=dataclasses.replace(run.config.refresh, prompts=3))
    )
    with pytest.raises(DataError, match=r"^refresh\.prompts = 3: the labeller told no two answers apart, so nothing"):
        make_pairs(other, lambda xs, a, b: np.zeros(len(xs), np.int64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["refresh-quality", "refresh-gap"])
def test_a_refreshed_model_starts_from_the_one_it_refreshes_and_is_trained(run, name):
    run_refresh(run, name)
    record = json.loads((run.stage_folder(name) / "done.json").read_text())
    assert (record["steps"], record["hash"]) == (4, run.stage_hash(name))
    with run.checkpoints(name, keep=2) as checkpoints:
        after = checkpoints.restore_params(run.model(name)[1])
    before = run.trained(name.replace("refresh", "reward"))[1]
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
    other = Run(run.folder, dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, path="x")))
    with pytest.raises(ConfigError) as caught:
        labeller_of(other)
    assert str(caught.value) == (
        "refresh.prompts = 12: samples must be labelled, and only a synthetic task has an oracle; set it to 0, or "
        "call pit.stages.refresh.make_pairs with a labeller of your own"
    )


def test_rewards_from_rl_1_on_are_the_refreshed_ones(run):
    plain = tiny()
    assert set(STAGES) - set(stages_of(plain)) == {"refresh-quality", "refresh-gap", "rl-third"}
    assert set(STAGES) - set(stages_of(run.config)) == {"rl-third"}
    rewards = {name: (reward_of(name, plain), reward_of(name, run.config)) for name in STAGES if name[:3] == "rl-"}
    assert rewards == {
        "rl-policy": ("reward-quality", "reward-quality"),
        "rl-first": ("reward-gap", "reward-gap"),
        "rl-second": ("reward-gap", "refresh-gap"),
        "rl-third": ("reward-gap", "refresh-gap"),
    }
    assert (last_reward("quality", plain), last_reward("quality", run.config)) == ("reward-quality", "refresh-quality")
    assert "refresh-gap" in needs_of("rl-second", run.config)
    assert needs_of("refresh-gap", run.config) == ("reward-gap", "rl-first", "rl-policy")


def test_a_refreshed_model_has_no_other_start():
    with pytest.raises(ConfigError) as caught:
        RefreshConfig(init="policy")
    assert str(caught.value) == (
        "refresh.init = 'policy': a refreshed model starts from the one that it refreshes; leave it as it is"
    )
