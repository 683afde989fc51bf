"""Joints of the evaluation: whose answers each method is, to which prompts, compared with what, judged by whom."""

import numpy as np
import pytest
from world import World, run_of

from pit.data.synthetic import FAMILIES
from pit.data.tokens import Tokens
from pit.evaluate import measure
from pit.evaluate.gold import best_gold, gold_of, labeller_of, oracle_of
from pit.evaluate.measure import Answers, Judge
from pit.evaluate.stats import Interval, length_controlled_delta
from pit.improve import Step, Trajectory
from pit.rl.board import gold_signals
from pit.rl.records import Prompts, Rollout
from pit.rollout.sample import Samples

ITERATIONS = 3
OFFLINE = ("dpo_policy", "srpo_improved")


def answered(*settings):
    """Return what was asked for while every method answered, the run, and the answers."""
    world, run = World(), run_of("evaluate.prompts=6", "improve.iterations=3", "improve.batch=8", *settings)
    world.score = lambda model, path: float(sum(path[-1]) % 7 - sum(path[-2]) % 5)
    with world.watched("evaluate"):
        return world, run, measure.answer_all(run)


def gap_of(x, ref, y):
    """Return the symmetric gap of the scores above."""
    if y == ref:
        return 0.0
    score = lambda one, other: sum(one) % 7 - sum(other) % 5  # noqa: E731
    return (score(y, ref) - score(ref, y)) / 2


SETTINGS = ("improve.gap=symmetric", "improve.threshold=0.5")


def segments(prefix, closings):
    """Return the contents of the segments of a prefix."""
    result, part = [], []
    for token in prefix:
        if token in closings:
            result.append(part)
            part = []
        else:
            part.append(token)
    return result


def test_methods_answer_prompts_of_the_eval_fold():
    world, run, answers = answered(*SETTINGS)
    prompts = [run.store.fold("eval").row(i)[0].tolist() for i in range(6)]
    assert answers.prompts.rows() == prompts
    assert world.folds == {"evaluate": ["eval"]}
    for ask in world.asks:
        assert ask.ids == list(range(6))
        assert [segments(prefix, world.closings)[0] for prefix in ask.prefixes] == prompts


def test_each_method_is_of_the_models_that_its_name_says():
    world, _, answers = answered(*SETTINGS)
    first = answers.methods["policy"].rows()
    spoken = [(ask.model, [segments(prefix, world.closings)[1:] for prefix in ask.prefixes]) for ask in world.asks]
    assert [model for model, _ in spoken] == [
        "rl-policy",
        *["rl-improver-1"] * (2 * ITERATIONS + 1),
        "sft-policy",
    ]
    accepted, plain = spoken[1 : 1 + ITERATIONS], spoken[1 + ITERATIONS : 1 + 2 * ITERATIONS]
    assert spoken[0][1] == spoken[-1][1] == [[]] * 6
    for k in range(ITERATIONS):
        assert accepted[k][1] == [[path.answer(k)] for path in answers.improved]
        assert plain[k][1] == [[path.answer(k)] for path in answers.plain]
    assert plain[0][1] == [[y] for y in first]
    # The wrong reference of a prompt is the first answer to the next one.
    assert spoken[1 + 2 * ITERATIONS][1] == [[y] for y in (*first[1:], first[0])]
    assert {scoring.model for scoring in world.scorings} == {"reward-gap"}


def test_methods_hold_the_answers_of_their_pass():
    world, _, answers = answered(*SETTINGS)
    methods = {name: outputs.rows() for name, outputs in answers.methods.items()}
    spoken = [[reply(ask, g, world.closings[2]) for g in range(6)] for ask in world.asks]
    assert methods["policy"] == spoken[0] == [path.first for path in answers.improved]
    assert methods["sft_policy"] == spoken[-1]
    assert methods["wrong_reference_plain"] == spoken[-2]
    for k in range(1, ITERATIONS + 1):
        suffix = "" if k == 1 else f"_{k}"
        assert methods[f"improved{suffix}"] == [path.answer(k) for path in answers.improved]
        assert (
            methods[f"improved_plain{suffix}"] == [path.answer(k) for path in answers.plain] == spoken[ITERATIONS + k]
        )
    kept = zip(answers.prompts.rows(), methods["policy"], methods["wrong_reference_plain"], strict=True)
    assert methods["wrong_reference"] == [new if gap_of(x, old, new) > 0.5 else old for x, old, new in kept]
    for path in answers.improved:
        for k, step in enumerate(path.steps):
            assert step.gap == pytest.approx(gap_of(path.prompt, path.answer(k), step.candidate), abs=1e-5)
            assert step.accepted == (step.gap > 0.5)
    accepted = [step.accepted for path in answers.improved for step in path.steps]
    assert any(accepted)
    assert not all(accepted)


def test_offline_rivals_answer_as_the_policy_and_as_the_improver_of_its_answers():
    world, _, answers = answered(*SETTINGS, "offline=both")
    first = answers.methods["policy"].rows()
    (dpo,) = [ask for ask in world.asks if ask.model == "dpo-policy"]
    passes = [ask for ask in world.asks if ask.model == "srpo-improver"]
    assert answers.methods["dpo_policy"].rows() == [reply(dpo, g, world.closings[2]) for g in range(6)]
    assert all(len(segments(prefix, world.closings)) == 1 for prefix in dpo.prefixes)
    read, names = first, ["srpo_improved", "srpo_improved_2", "srpo_improved_3"]
    for name, ask in zip(names, passes, strict=True):
        assert [segments(prefix, world.closings)[1] for prefix in ask.prefixes] == read
        read = [reply(ask, g, world.closings[2]) for g in range(6)]
        assert answers.methods[name].rows() == read
    seeds = {ask.seed for ask in (dpo, *passes)}
    assert len(seeds) == 4
    assert not seeds & {ask.seed for ask in world.asks if ask.model not in (dpo.model, passes[0].model)}
    judge = Judge("oracle", {name: np.arange(6.0) + len(name) for name in answers.methods}, True)
    rows = measure.deltas(judge, answers, seed=0, resamples=10)
    wanted = ["dpo_policy_over_policy", "srpo_improved_3_over_policy", *(f"improved_over_{n}" for n in OFFLINE)]
    assert {f"{name}/oracle" for name in wanted} <= rows.keys()
    # "srpo_improved" is longer than "improved", and that is worth more.
    assert rows["improved_over_srpo_improved/oracle"].value == -100.0


def reply(ask, g, eos):
    """Return the contents of an answer."""
    tokens = [int(token) for token in ask.tokens[g, 0] if token]
    return tokens[:-1] if tokens[-1] == eos else tokens


def trajectories(accepted):
    """Return three prompts with two passes each; candidates and answers are single tokens."""
    result = []
    for i, flags in enumerate(accepted):
        kept, steps = [10 + i], []
        for k, flag in enumerate(flags):
            candidate = [30 + 10 * k + i] * (k + 2)
            kept = candidate if flag else kept
            steps.append(Step(candidate, 1.0 if flag else -1.0, flag, kept))
        result.append(Trajectory(i, [1], [10 + i], tuple(steps)))
    return result


def by_hand():
    improved, plain = trajectories([(True, False), (False, True), (False, True)]), trajectories([(True, True)] * 3)
    methods = {
        "sft_policy": [[1], [2, 2], [3]],
        "policy": [[10], [11], [12]],
        "improved": [path.answer(1) for path in improved],
        "improved_plain": [path.answer(1) for path in plain],
        "wrong_reference": [[10], [41, 41], [12]],
        "wrong_reference_plain": [[11], [12], [99]],
        "improved_2": [path.answer(2) for path in improved],
        "improved_plain_2": [path.answer(2) for path in plain],
    }
    columns = {name: Tokens.of(rows) for name, rows in methods.items()}
    answers = Answers(Tokens.of([[1], [1], [1]]), columns, improved, plain)
    scores = {
        "sft_policy": [3.0, 1.0, 0.0],
        "policy": [2.0, 2.0, 2.0],
        "improved": [3.0, 3.0, 2.0],
        "improved_plain": [1.0, 1.0, 3.0],
        "wrong_reference": [2.0, 1.0, 2.0],
        "wrong_reference_plain": [0.0, 0.0, 0.0],
        "improved_2": [5.0, 5.0, 2.0],
        "improved_plain_2": [6.0, 6.0, 6.0],
    }
    return answers, Judge("oracle", {name: np.array(values) for name, values in scores.items()}, True)


def test_deltas_are_wins_of_the_named_over_the_other():
    answers, judge = by_hand()
    counts = {
        name: (delta.win, delta.lose, delta.tie)
        for name, delta in measure.deltas(judge, answers, seed=0, resamples=10).items()
    }
    assert counts == {
        "policy_over_sft_policy/oracle": (2, 1, 0),
        "improved_over_policy/oracle": (2, 0, 1),
        "improved_plain_over_policy/oracle": (1, 2, 0),
        "wrong_reference_over_policy/oracle": (0, 1, 2),
        "wrong_reference_plain_over_policy/oracle": (0, 3, 0),
        "improved_2_over_policy/oracle": (2, 0, 1),
        "improved_plain_2_over_policy/oracle": (3, 0, 0),
        "improved_over_policy/oracle/length_controlled": (2, 0, 1),
    }
    assert measure.deltas(Judge("judge", judge.scores, False), answers, seed=0, resamples=10) == {}


def test_lengths_of_the_controlled_delta_are_those_of_the_same_answers():
    answers, judge = by_hand()
    delta = measure.deltas(judge, answers, seed=0, resamples=10)["improved_over_policy/oracle/length_controlled"]
    scores = [judge.scores[name] for name in ("improved", "policy")]
    one = np.ones(3)
    expected, equal = (
        length_controlled_delta(*scores, lengths, one, seed=0, resamples=10) for lengths in (np.array([2.0, 1, 1]), one)
    )
    assert delta == expected != equal


def test_quality_is_that_of_the_answer_after_each_pass():
    answers, judge = by_hand()
    stopped, plain = (measure.quality_series(judge, answers, stop_rule=rule, seed=0) for rule in (True, False))
    assert [(p.iteration, p.mean) for p in stopped] == [(0, 2.0), (1, pytest.approx(8 / 3)), (2, 4.0)]
    assert [p.accepted_share for p in stopped] == [None, pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert [p.mean for p in plain] == [2.0, pytest.approx(5 / 3), 6.0]
    assert [p.accepted_share for p in plain] == [None, None, None]
    assert [p.mean_tokens for p in stopped] == [1.0, pytest.approx(4 / 3), pytest.approx(8 / 3)]
    assert [p.mean_tokens for p in plain] == [1.0, 2.0, 3.0]


def test_quality_of_a_subset_is_that_of_its_prompts_alone():
    answers, judge = by_hand()
    stopped = measure.quality_series(judge, answers, stop_rule=True, seed=0, rows=[2, 1])
    assert [p.mean for p in stopped] == [2.0, 2.5, 3.5]
    assert [p.accepted_share for p in stopped] == [None, 0.0, 1.0]
    assert [p.mean_tokens for p in stopped] == [1.0, 1.0, 3.0]
    kinds = ("Write without commas.", 'Do not forget a "P.S." at the end.', "Use small letters only.")
    prompts = [f"Write a short note about a harbour at dawn. {statement}" for statement in kinds]
    assert measure.subsets("instruct", prompts) == {"seen combinations": [0, 2], "unseen kinds": [1]}
    assert measure.subsets("instruct", prompts[::2]) == {}


def test_copies_are_counted_against_the_reference_that_was_read():
    answers, _ = by_hand()
    rates = measure.copy_rates(answers)
    assert rates["own reference"].exact == 0.0
    # The answers to the next prompt, handed back twice of three times.
    assert rates["another prompt's"].exact == pytest.approx(2 / 3)


def test_examples_show_the_first_of_each_outcome():
    answers, judge = by_hand()
    assert measure._outcomes(answers, judge) == [0, 2, 2]
    harmed = Judge("oracle", judge.scores | {"improved": np.array([0.0, 3.0, 2.0])}, True)
    assert measure._outcomes(answers, harmed) == [1, 2, 2]


def test_accuracies_are_of_the_eval_fold_with_the_better_answer_first():
    """R_P is right where the sum of tokens says so, the judge where their number does, R_PIT by the answer alone."""
    run = run_of("refresh.prompts=8")
    world = World()
    by_model = {
        "reward-quality": lambda path: float(sum(path[-1])),
        "refresh-quality": lambda path: -float(sum(path[-1])),
        "reward-judge": lambda path: float(len(path[-1])),
        # The offset of unequal answers is far above all else.
        "reward-gap": lambda path: float(sum(path[-1]) - 2 * sum(path[-2])) / 64 + 1000.0 * (path[-1] != path[-2]),
        "refresh-gap": lambda path: float(len(path[-2]) - len(path[-1])),
    }
    world.score = lambda model, path: by_model[model](path)
    with world.watched("evaluate"):
        accuracies = measure.model_accuracies(run)
    fold = run.store.fold("eval")
    pairs = [[part.tolist() for part in fold.row(i)[1:]] for i in range(len(fold))]
    heavier = np.array([np.sign(sum(better) - sum(worse)) for better, worse in pairs])
    longer = np.array([np.sign(len(better) - len(worse)) for better, worse in pairs])
    halves = {name: float(np.mean((1 + sign) / 2)) for name, sign in (("heavy", heavier), ("long", longer))}
    assert world.folds == {"evaluate": ["eval"]}
    assert accuracies["length"].value == pytest.approx(halves["long"])
    assert accuracies["R_P"].value == pytest.approx(halves["heavy"])
    assert accuracies["R_P refreshed"].value == pytest.approx(1 - halves["heavy"])
    assert accuracies["judge"].value == pytest.approx(halves["long"])
    assert accuracies["R_PIT symmetric"].value == pytest.approx(halves["heavy"])
    assert accuracies["R_PIT centred"].value == 0.5
    assert accuracies["R_PIT refreshed symmetric"].value == pytest.approx(1 - halves["long"])
    assert 0.05 < halves["long"] < 0.95
    assert halves["long"] != halves["heavy"]


def test_accuracies_on_own_answers_are_of_the_last_models_and_of_what_the_labels_say():
    """y0 against the first plain pass where the oracle tells them apart: R_P is right once of twice, R_PIT never."""
    answers, judge = by_hand()
    worth = judge.scores | {"policy": np.array([1.0, 2.0, 3.0]), "improved_plain": np.array([2.0, 2.0, 0.0])}
    first, second = (answers.methods[name].rows() for name in ("policy", "improved_plain"))
    better, worse = [second[0], first[2]], [first[0], second[2]]
    world, run = World(), run_of("refresh.prompts=8")
    world.score = lambda model, path: (
        {"refresh-quality": 1.0, "refresh-gap": -1.0}[model]
        * (list(path[-1]) == better[0] or (len(path) == 3 and list(path[-1]) in better and list(path[1]) in worse))
        - float(model == "refresh-quality" and list(path[-1]) == better[1])
    )
    with world.watched("evaluate"):
        found = measure.own_accuracies(run, answers, Judge("oracle", worth, True))
        nothing = measure.own_accuracies(run_of(), answers, Judge("judge", worth, True))
    assert {name: (each.value, each.n) for name, each in found.items()} == {
        "R_P, own answers": (0.5, 2),
        "R_PIT symmetric, own answers": (0.0, 2),
    }
    assert nothing == {}


def test_a_judge_gives_a_verdict_only_if_it_knows_more_than_length():
    answers, _ = by_hand()
    run, world = run_of(), World()
    for judge, verdict in ((Interval(0.9, 0.85, 0.95, 99), True), (Interval(0.6, 0.45, 0.75, 99), False)):
        with world.watched("evaluate"):
            accuracies = {"judge": judge, "length": Interval(0.5, 0.45, 0.55, 99), "R_P": Interval(0.9, 0.9, 0.9, 9)}
            assert measure.model_judge(run, answers, accuracies).verdict == verdict
    assert {scoring.model for scoring in world.scorings} == {"reward-judge"}


def test_gold_is_of_the_oracle_or_of_the_judge_as_the_board_says():
    inputs, outputs = [[5], [6]], [[300, 301], [302]]
    for setting, model in (("auto", None), ("judge", "reward-judge")):
        run, world = run_of(f"board.gold={setting}"), World()
        with world.watched("gold"):
            gold = gold_of(run)
            prompts = run.store.fold("eval").columns([0, 1])[0] if model is None else inputs
            worth = gold(prompts, outputs)
        assert {scoring.model for scoring in world.scorings} == ({model} if model else set())
        if model is None:
            np.testing.assert_array_equal(worth, oracle_of(run)(prompts, outputs))
        else:
            assert worth.tolist() == [
                world.score(model, (tuple(x), tuple(y))) for x, y in zip(inputs, outputs, strict=True)
            ]
    run = run_of("board.gold=none")
    assert gold_of(run) is None
    assert best_gold(run)[1] == "oracle"


def test_labels_prefer_the_answer_of_more_worth():
    run = run_of()
    x = run.store.fold("eval").row(0)[0]
    text = run.template.decode_prompt(x)[0].content
    good = run.template.encode_answer(FAMILIES[run.config.data.task].clean_answer(text))
    label, worth = labeller_of(run), oracle_of(run)
    assert worth([x], [good])[0] > worth([x], [[300]])[0]
    assert label([x, x, x], [good, [300], good], [[300], good, good]).tolist() == [1, -1, 0]


def test_the_board_compares_samples_with_the_gold_of_their_own_reference():
    """The worth of an answer is its token: gains and agreement by hand."""
    inputs, references = Tokens.of([[1], [2]]), Tokens.of([[5], [9]])
    token = np.array([[[7, 0], [4, 0]], [[9, 0], [8, 0]]], np.int32)
    length, done = np.ones((2, 2), np.int32), np.zeros((2, 2), bool)
    zeros = np.zeros(token.shape, np.float32)
    rollout = Rollout(Prompts(np.arange(2), inputs, references), Samples(token, length, done, zeros, zeros, 1.0))
    gold = lambda xs, ys: np.array([float(y[0]) for y in Tokens.of(ys)])  # noqa: E731
    signals = gold_signals(gold, rollout, np.array([[1.0, 0.0], [0.0, 1.0]], np.float32))
    assert signals == {
        "gold": 7.0,
        "gold_gain": pytest.approx(((7 - 5) + (4 - 5) + (9 - 9) + (8 - 9)) / 4),
        "gold_agreement": 0.5,
    }
