"""Joints of chosen references: the best draft, passes that the gap keeps, shares of own answers, and random peers.

And the scale of the scores over them.
"""

import numpy as np
from test_wiring_resume import lines
from test_wiring_roles import answer
from world import World, named, remembered, run_of

from pit.rl.references import own_of
from pit.rl.scale import log_odds_scale

NAME = "rl-improver-1"
FORM = ("rl_improver_1.gap=symmetric", "rl_improver_1.evaluate_every=0")
ONCE = ("rl_improver_1.passes.least=1", "rl_improver_1.passes.most=1")


def score(model, path):
    """A score by the sums of all segments, which is not the same swapped; R_P's and R_PIT's differ."""
    x, *reference, y = (sum(segment) for segment in path)
    return float((x + 3 * y + 5 * sum(reference)) % 23 / 8) + (model == "reward-quality") * float(y % 7)


def worked(*settings):
    """Return the world and the run of the stage, with the asks of each step: references first, samples last."""

    def make():
        world, run = World(), run_of(*FORM, *settings)
        world.score = score
        world.work(run, NAME)
        return world, run

    world, run = remembered(("references", settings), make)
    asks, samples = world.asked(NAME), named(NAME).settings(run.config).samples
    ends = [i + 1 for i, ask in enumerate(asks) if ask.model == "rl-improver-0" and ask.n == samples]
    steps = [asks[first:end] for first, end in zip([0, *ends[:-1]], ends, strict=True)]
    return world, run, steps[:-1]


def column(ask, n, g, eos):
    return answer(ask._replace(tokens=ask.tokens[:, n:]), g, eos)


def gap(x, ref, y):
    return 0 if ref == y else (score("reward-gap", (x, ref, y)) - score("reward-gap", (x, y, ref))) / 2


def parts(ask, g, closings):
    """Return x and the reference that the improver read."""
    prefix = list(map(int, ask.prefixes[g]))
    end = prefix.index(closings[0])
    return prefix[:end], prefix[end + 1 : -1]


def test_the_reference_is_the_best_of_the_drafts_by_the_quality_model():
    world, _, steps = worked("rl_improver_1.drafts=3")
    places = []
    for written, improved in steps:
        assert (written.model, written.n) == ("rl-policy", 3)
        for g in range(len(written.ids)):
            x, reference = parts(improved, g, world.closings)
            drafts = [column(written, n, g, world.closings[2]) for n in range(3)]
            worth = [score("reward-quality", (x, draft)) for draft in drafts]
            assert reference == drafts[int(np.argmax(worth))]
            places.append(int(np.argmax(worth)))
    assert len(set(places)) == 3


def test_a_pass_is_kept_only_beyond_the_threshold_of_the_gap():
    world, _, steps = worked(*ONCE, "rl_improver_1.passes.threshold=0.25")
    kept = []
    for written, rewritten, improved in steps:
        for g in range(len(written.ids)):
            x, reference = parts(improved, g, world.closings)
            first, second = (column(ask, 0, g, world.closings[2]) for ask in (written, rewritten))
            kept.append(gap(x, first, second) > 0.25)
            assert reference == (second if kept[-1] else first)
    assert 0 < sum(kept) < len(kept)


def test_own_answers_have_their_share_of_the_policys():
    world, run, steps = worked(*ONCE, "rl_improver_1.sources.policy=1", "rl_improver_1.sources.own=1")
    shares = []
    for step, (written, *passes, improved) in enumerate(steps):
        own = own_of(written.ids, 0.5, run.seed.of(NAME).of("step", step).of("references").of("own"))
        for g in range(len(written.ids)):
            _, reference = parts(improved, g, world.closings)
            assert reference == column(passes[0] if own[g] else written, 0, g, world.closings[2])
        shares += own.tolist()
    assert 0 < sum(shares) < len(shares)


def test_samples_are_scored_over_one_of_their_peers():
    world, _, steps = worked("rl_improver_1.against=peer")
    scored = {(scoring.model, *map(tuple, scoring.path)) for scoring in world.scorings}
    peers = []
    for _, improved in steps:
        for g in range(len(improved.ids)):
            x, read = parts(improved, g, world.closings)
            ys = [tuple(column(improved, n, g, world.closings[2])) for n in range(improved.n)]
            assert tuple(read) not in ys
            assert not any(("reward-gap", tuple(x), tuple(read), y) in scored for y in ys)
            over = [n for n, peer in enumerate(ys) if all(("reward-gap", tuple(x), peer, y) in scored for y in ys)]
            assert len(over) == 1
            peers += over
    assert len(set(peers)) == improved.n


def test_scores_are_in_log_odds_of_the_pairs_of_the_rl_fold():
    world, run = World(), run_of(*FORM, "rl_improver_1.reward.scale=log_odds")
    rows = [[part.tolist() for part in run.store.fold("rl").row(i)] for i in range(len(run.store.fold("rl")))]
    better = {tuple(row[1]) for row in rows}
    world.score = lambda model, path: score(model, path) + 3 * (path[-1] in better)
    world.work(run, NAME)

    def of(x, ref, y):
        one, other = (world.score("reward-gap", tuple(map(tuple, path))) for path in ((x, ref, y), (x, y, ref)))
        return 0 if ref == y else (one - other) / 2

    scale = log_odds_scale(np.array([of(x, w, b) for x, b, w in rows], np.float32), "")
    samples = named(NAME).settings(run.config).samples
    asks = [ask for ask in world.asked(NAME) if ask.model == "rl-improver-0" and ask.n == samples][:-1]
    trained = [line for line in lines(run, NAME) if "loss" in line]
    for ask, line in zip(asks, trained, strict=True):
        assert line["rewards/scale"] == scale
        gaps = []
        for g in range(len(ask.ids)):
            x, ref = parts(ask, g, world.closings)
            gaps += [of(x, ref, column(ask, n, g, world.closings[2])) for n in range(samples)]
        assert abs(line["objective/reward"] - scale * np.mean(gaps)) < 1e-5 * scale
