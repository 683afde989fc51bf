"""Joints of the search at inference: what is drawn, improved, ranked, accepted and kept, under which random numbers.

Answers are single tokens, written by a hash of their random numbers. The gap and R_P are tables that order them in
different ways. A second, plain implementation of the search answers one prompt at a time.
"""

import dataclasses
import functools
import itertools
import json
from unittest import mock

import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wiring_improve import Spoken, models
from world import World, run_of

from pit.config import ConfigError, ImproveConfig
from pit.data.tokens import Tokens
from pit.evaluate import splits
from pit.evaluate.remembered import RememberedGap, RememberedQuality, RememberedSampler
from pit.improve import improve, record
from pit.improve.calibration import Calibration
from pit.rollout.score import ModelScorer
from pit.seeds import Seed
from pit.serve.lines import improve_lines

PROMPTS = [[10], [11], [12], [13], [14]]
REQUESTS = [7, 8, 9, 5, 6]
SEED = Seed((3, "here"))
KINDS = 12
"""Different answers: the tokens from 20 on."""


def hashed(*facts):
    return int(np.random.default_rng([abs(hash(fact)) % 2**32 for fact in facts]).integers(0, KINDS))


def worth(x, y):
    """What the gap sees of an answer."""
    return (y * 7 + x) % 5 + 0.0371 * y


def quality(x, y):
    """What R_P sees of it."""
    return float(np.float32((y * 5 + 3 * x) % 7 / 2 + 0.0173 * y))


def gap(x, y, ref):
    """A gap that is not transitive: the difference of worths, and a game of stone, paper, scissors."""
    if y == ref:
        return 0.0
    return float(np.float32(worth(x, y) - worth(x, ref) + ((y - ref) % 3 == 1) / 2 - ((ref - y) % 3 == 1) / 2))


class TableGap:
    """The gap of the table."""

    def gap(self, inputs, references, outputs, form):
        rows = zip(Tokens.of(inputs), Tokens.of(references), strict=True)
        columns = [Tokens.of(column) for column in outputs]
        return np.array(
            [[gap(int(x[0]), int(c[g][0]), int(ref[0])) for c in columns] for g, (x, ref) in enumerate(rows)],
            np.float32,
        ).reshape(-1, len(columns))


class TableQuality:
    """R_P of the table."""

    def quality(self, inputs, outputs):
        columns = [Tokens.of(column) for column in outputs]
        return np.array(
            [[quality(int(x[0]), int(c[g][0])) for c in columns] for g, x in enumerate(Tokens.of(inputs))], np.float32
        )


class Hashed(Spoken):
    """A sampler whose answers are a hash of the model's use, the reference, the id and the seed."""

    def answers(self, model, ids, inputs, references=None, *, strategy, seed):
        refs = [None] * len(ids) if references is None else [int(ref[0]) for ref in Tokens.of(references)]
        self.calls.extend((request, seed, ref) for request, ref in zip(ids, refs, strict=True))
        return Tokens.of([[20 + hashed(seed, request, ref or 0)] for request, ref in zip(ids, refs, strict=True)])


CALIBRATION = Calibration(-0.2, 0.9, 0.4, 0.45, 99)


@functools.cache
def loaded():
    base = models()
    sampler = Hashed(base.sampler.closings, 5)
    return dataclasses.replace(
        base, scorer=TableGap(), sampler=sampler, quality=TableQuality(), calibration=CALIBRATION
    )


def searched(config, **options):
    Spoken.calls.clear()
    return list(improve(loaded(), PROMPTS, REQUESTS, config, seed=SEED, **options))


def one_at_a_time(config, x, request, *, stop_rule=True):
    """The search for one prompt, written plainly: the answer after each round, and all that was made."""
    draw = lambda *purpose: 20 + hashed(SEED.of(*purpose).number, request, 0)  # noqa: E731
    refine = lambda ref, *purpose: 20 + hashed(SEED.of("pass", *purpose).number, request, ref)  # noqa: E731
    made, answers = [draw("y0")], []
    made += [draw("draw", d, "y0") for d in range(1, config.draws)]

    def spread(values):
        return [0.0 if np.std(values) == 0 else (v - np.mean(values)) / np.std(values) for v in values]

    def best(places):
        ys = [made[i] for i in places]
        rewards = [quality(x, y) for y in ys]
        rounds = [sum(gap(x, y, z) for z in ys) / max(len(ys) - 1, 1) for y in ys]
        scores = {"quality": rewards, "gap": rounds, "both": np.add(spread(rewards), spread(rounds))}[config.rank]
        return places[int(np.argmax(scores))]

    if config.draws > 1:
        answers.append(made[best(list(range(config.draws)))])
    start = best(list(range(config.draws))) if config.draws > 1 else 0
    chains = list(range(config.draws)) if config.chains == "each" else [start]
    refused = [0] * len(chains)
    for number in range(1, config.iterations + 1):
        for c, standing in enumerate(list(chains)):
            new = []
            for w in range(config.width):
                if config.restart is not None and refused[c] >= config.restart:
                    turn = ((number - 1) * len(chains) + c) * config.width + w
                    y = draw("draw", config.draws + turn, "y0")
                else:
                    y = refine(made[standing], *((number, c, w) if c or w else (number,)))
                made.append(y)
                new.append(len(made) - 1)
            ref = made[standing]
            value = [gap(x, made[i], ref) for i in new]
            threshold = config.threshold
            if config.accept == "calibrated":
                lead = [quality(x, made[i]) - quality(x, ref) for i in new]
                value = [
                    1 / (1 + np.exp(-(CALIBRATION.intercept + CALIBRATION.gap * g + CALIBRATION.quality * d)))
                    for g, d in zip(value, lead, strict=True)
                ]
                threshold = CALIBRATION.threshold
            winner = int(np.argmax(value))
            accepted = value[winner] > threshold or not stop_rule
            chains[c] = new[winner] if accepted else standing
            refused[c] = 0 if accepted else refused[c] + 1
        if config.select == "all":
            answers.append(made[best(list(range(len(made))))])
        else:
            answers.append(made[chains[0] if len(chains) == 1 else best(sorted(set(chains)))])
    return answers, made


configs = st.builds(
    ImproveConfig,
    iterations=st.integers(1, 3),
    draws=st.integers(1, 3),
    width=st.integers(1, 3),
    chains=st.sampled_from(["best", "each"]),
    rank=st.sampled_from(["quality", "gap", "both"]),
    select=st.sampled_from(["kept", "all"]),
    accept=st.sampled_from(["threshold", "calibrated"]),
    restart=st.none() | st.integers(0, 2),
    threshold=st.sampled_from([-0.75, 0.25, 1.25]),
    batch=st.sampled_from([2, 64]),
)


def check(config, **options):
    paths = searched(config, **options)
    for path, (x,), request in zip(paths, PROMPTS, REQUESTS, strict=True):
        answers, made = one_at_a_time(config, x, request, **options)
        assert [answer.tokens for answer in path.made] == [[y] for y in made]
        assert [step.answer for step in path.steps] == [[y] for y in answers]
        before = path.first
        for step in path.steps:
            assert step.gap == pytest.approx(gap(x, step.candidate[0], before[0]))
            assert step.answer == (step.candidate if step.accepted else before)
            before = step.answer
        assert len(made) == config.answers
        assert len(path.steps) == config.rounds


def test_a_search_is_the_plain_one():
    """Few of the many searches, so that a mutant of any joint is caught in a moment."""
    for draws, chains, select in itertools.product((1, 3), ("best", "each"), ("kept", "all")):
        for rank, accept in zip(("quality", "gap", "both"), ("threshold", "calibrated", "threshold"), strict=True):
            check(
                ImproveConfig(
                    iterations=3, draws=draws, width=2, chains=chains, rank=rank, select=select, accept=accept,
                    restart=None if draws == 1 else 1, threshold=0.25, batch=3,
                )
            )  # fmt: skip


@settings(max_examples=examples(60), deadline=None)
@given(config=configs, stop_rule=st.booleans())
def test_any_search_is_the_plain_one(config, stop_rule):
    check(config, stop_rule=stop_rule)


def columns(config, count):
    """Return the draws of the policy as rivals of the study make them: y0, then one under a seed per draw."""
    prompts, base = Tokens.of(PROMPTS), loaded()
    first = base.respond(prompts, REQUESTS, config, SEED)
    return prompts, [first, *(base.respond(prompts, REQUESTS, config, SEED.of("draw", k)) for k in range(1, count))]


@pytest.mark.parametrize("count", [2, 6])
def test_draws_alone_are_best_of_n(count):
    config = ImproveConfig(draws=count, iterations=0, rank="quality")
    prompts, draws = columns(config, count)
    best = TableQuality().quality(prompts, draws).argmax(axis=1)
    assert [path.answer(config.rounds) for path in searched(config)] == [
        draws[best[g]][g].tolist() for g in range(len(prompts))
    ]


def test_a_chain_that_restarts_at_once_is_resampling():
    config = ImproveConfig(iterations=5, restart=0, threshold=0.25, gap="symmetric")
    prompts, draws = columns(config, 6)
    current = draws[0]
    paths = searched(config)
    for number, draw in enumerate(draws[1:], start=1):
        gaps = TableGap().gap(prompts, current, [draw], "symmetric")[:, 0]
        current = draw.where(gaps > 0.25, current)
        assert [path.answer(number) for path in paths] == current.rows()
    assert all(answer.source is None for path in paths for answer in path.made)


def test_the_default_is_the_paper_s_chain():
    config = ImproveConfig(iterations=3, threshold=0.25)
    assert config.chain() == config
    assert (config.answers, config.rounds) == (4, 3)
    wide = dataclasses.replace(config, draws=3, width=2, chains="each", select="all", accept="calibrated", restart=1)
    assert wide.chain() == config
    assert (wide.answers, wide.rounds) == (3 + 3 * 3 * 2, 4)
    assert dataclasses.replace(wide, iterations=0).chain().iterations == 1
    for path, (x,), request in zip(searched(config), PROMPTS, REQUESTS, strict=True):
        answer, made = 20 + hashed(SEED.of("y0").number, request, 0), []
        for number in (1, 2, 3):
            candidate = 20 + hashed(SEED.of("pass", number).number, request, answer)
            accepted = gap(x, candidate, answer) > 0.25
            answer = candidate if accepted else answer
            made.append(([candidate], accepted, [answer]))
        assert [(step.candidate, step.accepted, step.answer) for step in path.steps] == made


def test_no_two_answers_of_a_search_share_their_random_numbers():
    for restart in (None, 0, 1):
        config = ImproveConfig(draws=3, iterations=3, width=2, chains="each", restart=restart, select="all")
        searched(config)
        keys = [(request, seed) for request, seed, _ in Spoken.calls]
        assert len(keys) == len(set(keys)) == config.answers * len(PROMPTS)


def test_sources_name_the_answers_that_were_read():
    config = ImproveConfig(draws=2, iterations=2, chains="each", select="all", restart=1, threshold=0.25)
    for path, request in zip(searched(config), REQUESTS, strict=True):
        assert [answer.source for answer in path.made[:2]] == [None, None]
        read = {(seed, ref) for asked, seed, ref in Spoken.calls if asked == request}
        for answer in path.made[2:]:
            ref = None if answer.source is None else path.made[answer.source].tokens[0]
            assert any(other == ref and answer.tokens == [20 + hashed(seed, request, ref or 0)] for seed, other in read)


def test_ranks_by_hand():
    """Three answers in a circle of gaps, of which R_P prefers the last."""
    from pit.improve.pool import Pool

    class Circle:
        def gap(self, inputs, references, outputs, form):
            assert form == "symmetric"
            table = {(1, 2): 3.0, (2, 3): 1.0, (1, 3): -1.0}
            pairs = zip(Tokens.of(outputs[0]), Tokens.of(references), strict=True)
            over = lambda a, b: table[a, b] if (a, b) in table else -table[b, a]  # noqa: E731
            return np.array([[over(int(y[0]), int(ref[0]))] for y, ref in pairs], np.float32)

    class Last:
        def quality(self, inputs, outputs):
            return np.array([[0.0, 1.0, 5.0]], np.float32)[:, : len(outputs)]

    pool = Pool(Tokens.of([[9]]), Tokens.of([[1]]), Circle(), Last())
    pool.add([Tokens.of([[2]]), Tokens.of([[3]])])
    every = np.ones((1, 3), bool)
    assert pool.scores("gap", every).tolist() == [[1.0, -1.0, 0.0]]
    assert pool.scores("quality", every).tolist() == [[0.0, 1.0, 5.0]]
    spread = lambda values: (np.array(values) - np.mean(values)) / np.std(values)  # noqa: E731
    both = spread([1.0, -1.0, 0.0]) + spread([0.0, 1.0, 5.0])
    np.testing.assert_allclose(pool.scores("both", every), [both])
    assert [int(pool.best(rank, every)[0]) for rank in ("gap", "quality", "both")] == [0, 2, 2]
    some = np.array([[False, True, True]])
    assert pool.scores("gap", some).tolist() == [[-np.inf, 1.0, -1.0]]
    # An answer that was made twice counts twice as an opponent, and the first of the two is best.
    pool.add([Tokens.of([[1]])])
    assert pool.scores("gap", np.ones((1, 4), bool)).tolist() == [
        [pytest.approx(2 / 3), -5 / 3, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    ]


def test_a_choice_by_quality_needs_r_p():
    bare = dataclasses.replace(loaded(), quality=None, calibration=None)
    for config, message in (
        (ImproveConfig(draws=2, iterations=0), "quality = None: R_P takes part in this choice"),
        (ImproveConfig(accept="calibrated"), "quality = None: R_P takes part in this choice"),
    ):
        with pytest.raises(ValueError, match=message):
            list(improve(bare, PROMPTS, REQUESTS, config, seed=SEED))
    with pytest.raises(ValueError, match=r"calibration = None: improve\.accept = calibrated needs one"):
        list(
            improve(
                dataclasses.replace(loaded(), calibration=None),
                PROMPTS,
                REQUESTS,
                ImproveConfig(accept="calibrated"),
                seed=SEED,
            )
        )
    assert not ImproveConfig().weighs_quality
    assert not ImproveConfig(draws=2, rank="gap").weighs_quality
    assert ImproveConfig(draws=2).weighs_quality


# The choice of a split.

SETTINGS = ("evaluate.search_prompts=6", "evaluate.search_answers=2, 6", "improve.gap=symmetric", "improve.batch=64")


def sum_of_tokens(inputs, answers):
    """A worth that depends on the prompt and the answer."""
    return np.array(
        [float(sum(map(int, y)) % 11) + sum(map(int, x)) % 3 for x, y in zip(inputs, Tokens.of(answers), strict=True)]
    )


def chosen(*settings):
    """Return a world in which a run has chosen, the run, and its record."""
    world, run = World(), run_of(*SETTINGS, *settings)
    world.score = lambda model, path: float(sum(path[-1]) % 7 - (sum(path[-2]) % 5 if len(path) == 3 else 0))
    with world.watched("search"), mock.patch.object(splits, "best_gold", return_value=(sum_of_tokens, "oracle")):
        made = splits.search_of(run)
        record.write_searched(run, made)
    return world, run, made


def test_splits_are_chosen_on_the_judge_s_fold_which_no_evaluation_uses():
    world, run, made = chosen()
    assert world.folds == {"search": ["judge"]}
    prompts = [run.store.fold("judge").row(i)[0].tolist() for i in range(6)]
    asked = {
        tuple(prefix[: len(x)])
        for ask in world.asks
        for prefix, x in zip(ask.prefixes, map(prompts.__getitem__, ask.ids), strict=True)
    }
    assert asked == set(map(tuple, prompts))
    assert {ask.model for ask in world.asks} == {"rl-policy", "rl-improver-1"}
    assert {scoring.model for scoring in world.scorings} == {"reward-gap", "reward-quality"}
    assert (made.prompts, made.worth) == (6, "oracle")
    assert set(made.splits) == set(made.tried) == {2, 6}


def test_the_split_of_most_worth_is_chosen_and_the_simplest_at_ties():
    _, run, made = chosen()
    config = run.config.improve
    for answers, means in made.tried.items():
        options = splits.splits_of(answers, config)
        assert list(means) == list(options)
        assert all(split.answers == answers for split in options.values())
        best = next(name for name, mean in means.items() if mean == max(means.values()))
        assert made.splits[answers] == record.changes_of(options[best])
        assert len(set(means.values())) > 1


def test_what_is_remembered_is_what_would_be_made_again():
    """Splits are worth the same to models that forget."""
    world, run, made = chosen()
    with world.watched("again"):
        prompts = splits.held_out_prompts(run)
        everything = dataclasses.replace(run.config.improve, select="all")
        forgetful = splits.Models.load(run, run.config.reward_gap.packing, config=everything)
        forgetful = dataclasses.replace(forgetful, calibration=made.calibration)
        options = splits.splits_of(6, run.config.improve)
        seed = run.seed.of("search")
        for name, values, _ in splits.worths(forgetful, prompts, options, sum_of_tokens, seed):
            assert made.tried[6][name] == round(float(values.mean()), 6), name
    keys = [
        (ask.model, ask.seed, i, tuple(p))
        for ask in world.asked("search")
        for i, p in zip(ask.ids, ask.prefixes, strict=True)
    ]
    assert len(keys) == len(set(keys)), "nothing is drawn twice"


def test_remembered_scores_are_those_of_the_scorer_and_are_asked_for_once():
    asked = []

    class Counted(TableGap):
        def gap(self, inputs, references, outputs, form):
            asked.append(len(Tokens.of(inputs)) * len(outputs))
            return super().gap(inputs, references, outputs, form)

    inputs, refs, outs = [[10], [11]], [[20], [21]], [[[22], [23]], [[22], [24]]]
    remembered = RememberedGap(Counted())
    expected = TableGap().gap(inputs, refs, outs, "symmetric")
    for _ in range(2):
        np.testing.assert_array_equal(remembered.gap(inputs, refs, outs, "symmetric"), expected)
    assert sum(asked) == 3
    remembered.gap(inputs, refs, outs, "centred")
    assert sum(asked) == 6
    quality_of = RememberedQuality(TableQuality())
    np.testing.assert_array_equal(quality_of.quality(inputs, outs), TableQuality().quality(inputs, outs))
    sampler = RememberedSampler(loaded().sampler)
    Spoken.calls.clear()
    draw = lambda: sampler.answers(loaded().policy, [3, 4], inputs, strategy=1.0, seed=5).rows()  # noqa: E731
    assert draw() == draw()
    assert len(Spoken.calls) == 2


def lines(run, world, budget=None, **changes):
    source = run.folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("one", "two", "three")))
    with world.watched("improve"), source.open("rb") as read, (run.folder / "improved.jsonl").open("w") as sink:
        improve_lines(run, read, sink, changes, seed=0, budget=budget)
    return [json.loads(line) for line in (run.folder / "improved.jsonl").read_text().splitlines()]


def test_a_budget_takes_the_largest_split_within_it():
    world, run, made = chosen()
    for answers, budget in ((2, 6 * made.tokens_per_answer - 1), (6, 6 * made.tokens_per_answer + 1)):
        config = record.with_budget(run, run.config.improve, int(budget))
        assert record.changes_of(config) == made.splits[answers]
        assert config.answers == answers
        rows = lines(run, world, budget=int(budget))
        assert [len(row["answers"]) for row in rows] == [1 + config.rounds] * 3
        if config.answers > 1 + config.rounds:
            assert [len(row["made"]) for row in rows] == [answers] * 3


def test_a_budget_is_refused_where_nothing_was_chosen_for_it():
    world, run, made = chosen()
    least = int(2 * made.tokens_per_answer)
    with world.watched("improve"):
        with pytest.raises(ConfigError, match=rf"^--budget = {least - 1}: must hold 2 answers of .*--answers N`$"):
            record.with_budget(run, run.config.improve, least - 1)
        warmer = dataclasses.replace(run.config.improve, temperature=0.5)
        with pytest.raises(ConfigError, match=r"was chosen for other models, or other temperature, top_k, .*run `pit"):
            record.with_budget(run, warmer, 999)
        (run.folder / "search.json").unlink()
        with pytest.raises(ConfigError, match=r"^--budget = 999: needs .*search\.json, which is not there; run `pit"):
            record.with_budget(run, run.config.improve, 999)


def test_a_calibration_of_the_run_accepts():
    world, run, made = chosen()
    with world.watched("improve"):
        config = dataclasses.replace(run.config.improve, accept="calibrated")
        held = splits.Models.load(run, run.config.reward_gap.packing, config=config)
    assert held.calibration == made.calibration
    assert isinstance(held.quality, ModelScorer)
    assert made.calibration.pairs > 0


def test_a_calibration_is_fitted_to_candidates_of_both_over_what_they_would_replace():
    world, run, _ = chosen()
    pairs = []
    real = splits.fit

    def noted(gaps, differences, gains):
        pairs.append((gaps, differences, gains))
        return real(gaps, differences, gains)

    with mock.patch.object(splits, "fit", noted), world.watched("again"):
        everything = dataclasses.replace(run.config.improve, select="all")
        held = splits.Models.load(run, run.config.reward_gap.packing, config=everything)
        prompts, config = splits.held_out_prompts(run), run.config.improve
        splits.calibration_of(held, prompts, config, sum_of_tokens, run.seed.of("search"))
    ((gaps, differences, gains),) = pairs
    expected = [[], [], []]
    for restart in (None, 0):
        chain = dataclasses.replace(config.chain(), iterations=splits.CALIBRATION_PASSES, restart=restart)
        with world.watched("by hand"):
            paths = list(improve(held, prompts, range(6), chain, seed=run.seed.of("search")))
        for number in range(splits.CALIBRATION_PASSES):
            for path in paths:
                x, y, ref = path.prompt, path.steps[number].candidate, path.answer(number)
                score = lambda y, ref: sum(y) % 7 - sum(ref) % 5  # noqa: E731
                expected[0].append(0.0 if y == ref else (score(y, ref) - score(ref, y)) / 2)
                expected[1].append(float(sum(y) % 7 - sum(ref) % 7))
                expected[2].append(float(sum_of_tokens([x], [y])[0] - sum_of_tokens([x], [ref])[0]))
    for found, values in zip((gaps, differences, gains), expected, strict=True):
        np.testing.assert_allclose(found, values, atol=1e-5)


def test_another_server_makes_no_further_draws():
    world, run = World(), run_of()
    source = run.folder / "prompts.jsonl"
    source.write_text('{"prompt": "one"}\n')
    for changes in ({"draws": 2}, {"restart": 1}):
        with (
            world.watched("improve"),
            source.open("rb") as read,
            (run.folder / "improved.jsonl").open("w") as sink,
            pytest.raises(ConfigError, match="only the run's own policy makes further draws; leave --policy out"),
        ):
            improve_lines(run, read, sink, changes, seed=0, ask=lambda prompt: "yes")
