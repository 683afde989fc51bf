"""Joints of one RL step: scores, KL, penalties and advantages by hand, and the slots that they are trained in.

The step is the real one, with eight samples of four prompts of which some ended, some were cut and some copy their
reference, at temperature 0.7, in several batches, and with a policy and an anchor that differ.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from world import NUMBER, World, filled, named, path_of, remembered, role_tokens, run_of

from pit.data.curriculum import Draws
from pit.model.model import Model
from pit.rl.controllers import Controllers, Moments
from pit.rl.records import Answers
from pit.run.session import Session
from pit.seeds import Seed
from pit.stages.reinforced import make_step
from pit.types import Source

TEMPERATURE, BETA, PENALTY, COST, FREE = 0.7, 0.3, 0.25, 0.01, 3
IDS = np.array([4, 0, 9, 2])
SOURCES = np.array([Source.BETTER, Source.WORSE, Source.WORSE, Source.BETTER], np.uint8)
MOMENTS = Moments(4, 0.0, 16.0)
"""Scores so far: a standard deviation of 2."""

SETTINGS = (
    f"rl_improver_0.temperature={TEMPERATURE}",
    f"rl_improver_0.no_eos_penalty={PENALTY}",
    f"rl_improver_0.length_cost={COST}",
    f"rl_improver_0.length_free={FREE}",
    "rl_improver_0.running_scale=true",
    "rl_improver_0.packing.rows=1",
    "rl_improver_0.packing.trees=3",
    "rl_improver_0.packing.row_length=120",
)


class Copying(World):
    """A world in which the second sample of every other prompt hands the reference back."""

    def sample(self, model, prefixes, request_ids, **options):
        samples = super().sample(model, prefixes, request_ids, **options)
        for g, prefix in enumerate(sampled_rows(prefixes)):
            if g % 2:
                (eos,) = options["eos_ids"]
                reference = segments(prefix, self.closings)[1]
                samples.token[g, 1] = 0
                samples.token[g, 1, : len(reference) + 1] = [*reference, eos]
                samples.length[g, 1], samples.finished[g, 1] = len(reference) + 1, True
        return samples


def sampled_rows(prefixes):
    return [list(map(int, prefix)) for prefix in prefixes]


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


def score(model, path):
    """A score that shows which model, input, reference and output it is of, and that is not the same swapped."""
    x, *reference, y = (sum(segment) for segment in path)
    of_both = sum(-(ref % 13) / 16 + y * ref % 11 / 32 for ref in reference)
    return float(x % 5 / 4 + y % 17 / 8 + of_both)


@functools.cache
def weights(number):
    """Return random weights of the shape of the policy, an identity of its own per number."""
    with World().watched("shapes"):
        model = named("rl-policy").load(run_of())
    rng = np.random.default_rng(number)
    params = {name: jnp.asarray(rng.normal(0, 0.3, v.shape).astype(np.float32)) for name, v in model.params.items()}
    return Model(model.graphdef, params).sharded(run_of().mesh)


def stepped(*settings, reads=False):
    """Return the world, the run, the step, what it collected, and the controllers after it."""
    return remembered(("step", settings, reads), lambda: step_of(*settings, reads=reads))


def step_of(*settings, reads):
    """Take the step of `stepped`."""
    run, world = run_of(*SETTINGS, *settings), Copying()
    world.score = score
    with world.watched("rl-improver-0", reads=reads):
        session = Session(run, named("rl-improver-0"))
        reward_model = named("reward-gap").load(run)
        models = {"start": weights(1), "anchor": weights(2), "reward": reward_model}
        step = make_step(session, models)
        draws, control = Draws(0, IDS, SOURCES), Controllers(BETA, MOMENTS)
        scored, after = step.collect(weights(1).params, step.fold, draws, control, Seed((5,)))
    return world, run, step, scored, after


def contents(scored):
    """Return (x, reference, y) of every sample, as tuples."""
    prompts = scored.rollout.prompts
    xs, refs = prompts.inputs.rows(), prompts.references.rows()
    outputs = [column.rows() for column in scored.rollout.outputs]
    return [[tuple(map(tuple, (xs[g], refs[g], ys[g]))) for ys in outputs] for g in range(len(xs))]


FORMS = {
    "raw": lambda x, ref, y: score("", (x, ref, y)),
    "centred": lambda x, ref, y: score("", (x, ref, y)) - (score("", (x, y, y)) + score("", (x, ref, ref))) / 2,
    "symmetric": lambda x, ref, y: (score("", (x, ref, y)) - score("", (x, y, ref))) / 2,
    "difference": lambda x, ref, y: score("", (x, y)) - score("", (x, ref)),
}


def scores_by_hand(scored, form):
    gap = lambda x, ref, y: 0.0 if y == ref and form != "raw" else FORMS[form](x, ref, y)  # noqa: E731
    return np.array([[gap(*sample) for sample in tree] for tree in contents(scored)])


def leave_one_out(values):
    """Return each value less the mean of the others of its tree."""
    n = values.shape[1]
    return values - (values.sum(axis=1, keepdims=True) - values) / (n - 1)


def test_samples_are_of_all_kinds():
    """Ended, cut, and copies; some trees in other batches than their neighbours."""
    _, _, _, scored, _ = stepped("rl_improver_0.gap=symmetric")
    finished = scored.rollout.samples.finished
    assert finished.any()
    assert not finished.all()
    assert len(scored.trees.batches) > 1
    assert [batch.example_id.tolist() for batch in scored.trees.batches] != [[0, 1, 2], [3, -1, -1]]


def test_inputs_and_references_are_those_of_the_drawn_rows():
    _, run, _, scored, _ = stepped("rl_improver_0.gap=symmetric")
    fold, prompts = run.store.fold("rl"), scored.rollout.prompts
    for g, (example, source) in enumerate(zip(IDS, SOURCES, strict=True)):
        row = fold.row(int(example))
        assert prompts.inputs[g].tolist() == row[0].tolist()
        assert prompts.references[g].tolist() == row[1 if source == Source.BETTER else 2].tolist()
    assert prompts.ids.tolist() == IDS.tolist()


def test_scores_have_the_form_that_the_config_says():
    """Every form by hand, against the reference of the same prompt; no two forms agree here."""
    results = {}
    for form in FORMS:
        _, _, _, scored, after = stepped(f"rl_improver_0.gap={form}")
        expected = scores_by_hand(scored, form)
        np.testing.assert_allclose(scored.scores, expected, atol=1e-5, err_msg=form)
        assert after.scores.count == MOMENTS.count + expected.size
        results[form] = expected
    for form, values in results.items():
        assert sum(np.allclose(values, other) for other in results.values()) == 1, form


def test_rewards_and_advantages_are_those_worked_out_by_hand():
    """With 0.25 nats of KL per token."""
    for settings, normalise in (((), True), (("rl_improver_0.normalise=false",), False)):
        _, _, step, scored, after = stepped("rl_improver_0.gap=symmetric", *settings)
        scores, samples = scores_by_hand(scored, "symmetric"), scored.rollout.samples
        length, finished = samples.length.astype(np.float64), samples.finished
        everything = np.array([0.0] * 4)
        deviation = np.sqrt((MOMENTS.squares + 0.0 + combined(everything, scores)) / (MOMENTS.count + scores.size))
        kl = 0.25 * length
        reward = scores / deviation - BETA * kl - PENALTY * ~finished - COST * np.maximum(length - FREE, 0)
        np.testing.assert_allclose(scored.measures.kl_nats, kl, rtol=1e-5)
        np.testing.assert_allclose(scored.measures.entropy_nats, length, rtol=1e-5)
        np.testing.assert_allclose(scored.measures.reward, reward, atol=1e-5)
        advantage = leave_one_out(reward)
        advantage = advantage / advantage.std() if normalise else advantage
        trained = slots_of(step, scored, after)
        trained_advantage = {key: value["advantage"] for key, value in trained.items()}
        for tree, row in zip(contents(scored), advantage, strict=True):
            for sample, value in zip(tree, row, strict=True):
                assert trained_advantage[sample] == pytest.approx(value, abs=1e-4)


def combined(before, scores):
    """Return the squares that the scores add to moments of mean 0 and count 4."""
    count, total = len(before), len(before) + scores.size
    return np.sum((scores - scores.mean()) ** 2) + scores.mean() ** 2 * count * scores.size / total


def slots_of(step, scored, control):
    """Return what is trained on of each (x, reference, y), read off the rows of the minibatch."""
    (minibatch,) = step.algorithm.prepare(scored.trees, scored.measures, control, Seed((6,)))
    result = {}
    for batch, arrays in zip(scored.trees.batches, minibatch.arrays, strict=True):
        rows = batch.local
        for slot, leaf in np.argwhere(rows.leaf[:, :, 0] >= 0):
            row, end = rows.leaf[slot, leaf]
            path = path_of(rows, int(row), int(end), role_tokens(step.sampler.closings))
            names = ("advantage", "length", "finished", "anchor_logp")
            result[path] = {name: np.asarray(arrays[name])[slot, leaf] for name in names if name in arrays}
    return result


def test_every_slot_trains_on_the_facts_of_its_own_sample():
    _, _, step, scored, after = stepped("rl_improver_0.gap=symmetric")
    trained, samples = slots_of(step, scored, after), scored.rollout.samples
    assert len(trained) == len({sample for tree in contents(scored) for sample in tree})
    for g, tree in enumerate(contents(scored)):
        for n, sample in enumerate(tree):
            assert trained[sample]["length"] == samples.length[g, n] == len(sample[2]) + samples.finished[g, n]
            assert trained[sample]["finished"] == samples.finished[g, n]


def test_copies_are_counted_against_the_reference_of_the_same_prompt():
    _, _, _, scored, _ = stepped("rl_improver_0.gap=symmetric")
    copies = np.mean([[y == ref for _, ref, y in tree] for tree in contents(scored)])
    assert scored.values["rollout/copy_rate"] == copies == 0.25


def test_metrics_are_means_of_their_own_measure():
    _, _, _, scored, after = stepped("rl_improver_0.gap=symmetric")
    scores, values, samples = scores_by_hand(scored, "symmetric"), scored.values, scored.rollout.samples
    expected = {
        "objective/reward": scores.mean(),
        "objective/rlhf_reward": scored.measures.reward.mean(),
        "objective/non_score_reward": (scored.measures.reward - scores / after.scores.deviation).mean(),
        "objective/kl": 0.25 * samples.length.mean(),
        "objective/kl_coef": BETA,
        "rewards/accuracy": (scores > 1e-9).mean(),
        "completions/clipped_ratio": 1 - samples.finished.mean(),
        "completions/mean_length": samples.length.mean(),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-5), name


@functools.cache
def row_logp(number, path, length):
    """Return the log-probs, at the temperature, of the last tokens of a path alone in a row."""
    tokens = np.zeros((1, 96), np.int32)
    tokens[0, : len(path)] = path
    logits = _logits(weights(number).params, jnp.asarray(tokens), jnp.int32(len(path)))
    z = np.asarray(logits, np.float64)[0] / TEMPERATURE
    logp = z - z.max(axis=-1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(axis=-1, keepdims=True))
    return np.array([logp[i - 1, path[i]] for i in range(len(path) - length, len(path))])


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _logits(params, token, length):
    decoder = Model(weights(1).graphdef, params).merge()
    position = jnp.arange(token.shape[1], dtype=jnp.int32)[None]
    until = jnp.where(position < length, length, 0)
    return decoder.logits(decoder(token, position, until))


def by_rows(scored, closings, number, capacity):
    """Return the log-probs [G, N, C] of all samples by separate rows."""
    samples = scored.rollout.samples
    result = np.zeros((*samples.length.shape, capacity))
    for g, tree in enumerate(contents(scored)):
        for n, (x, ref, _) in enumerate(tree):
            count = int(samples.length[g, n])
            path = (*x, closings[0], *ref, closings[1], *samples.token[g, n, :count].tolist())
            result[g, n, :count] = row_logp(number, path, count)
    return result


def test_log_probs_kl_and_loss_are_those_of_separate_rows():
    """The one test that compiles decoders: k3 in the loss, so that the anchor's log-probs go all the way."""
    settings = ("rl_improver_0.gap=symmetric", "rl_improver_0.kl.estimator=k3", "rl_improver_0.kl.place=loss")
    world, _, step, scored, after = stepped(*settings, reads=True)
    capacity, samples = step.sampler.capacity, scored.rollout.samples
    policy, anchor = (by_rows(scored, world.closings, number, capacity) for number in (1, 2))
    ratio = policy - anchor
    k3 = np.where(scored.rollout.sampled, np.exp(-ratio) - 1 + ratio, 0).sum(axis=2)
    np.testing.assert_allclose(scored.measures.kl_nats, ratio.sum(axis=2), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scored.measures.penalty_nats, k3, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(scored.measures.entropy_nats, -policy.sum(axis=2), rtol=1e-4)
    gap = np.where(scored.rollout.sampled, np.abs(policy - samples.logp), 0)
    np.testing.assert_allclose(scored.measures.logp_gap_nats, gap, rtol=1e-3, atol=1e-3)
    scores = scores_by_hand(scored, "symmetric") / after.scores.deviation
    excess = np.maximum(samples.length - FREE, 0)
    reward = scores - PENALTY * ~samples.finished - COST * excess
    np.testing.assert_allclose(scored.measures.reward, reward, atol=1e-5)
    advantage = leave_one_out(reward)
    advantage = advantage / advantage.std()
    for (x, ref, y), value in slots_of(step, scored, after).items():
        ((g, n),) = [
            (g, n) for g, tree in enumerate(contents(scored)) for n, sample in enumerate(tree) if sample == (x, ref, y)
        ]
        np.testing.assert_allclose(value["anchor_logp"], anchor[g, n], rtol=1e-3, atol=1e-3)
    total = np.zeros(2)
    loss = jax.jit(step.algorithm.loss, compiler_options={"xla_backend_optimization_level": 0})
    (minibatch,) = step.algorithm.prepare(scored.trees, scored.measures, after, Seed((6,)))
    for arrays in minibatch.arrays:
        total += np.array(loss(weights(1).params, arrays)[0])
    expected = -np.sum(advantage * policy.sum(axis=2)) + BETA * k3.sum()
    np.testing.assert_allclose(total, [expected, advantage.size], rtol=1e-3)


def test_the_reward_of_the_policy_is_the_plain_score():
    world, run = Copying(), run_of()
    world.score = score
    with world.watched("rl-policy"):
        session = Session(run, named("rl-policy"))
        quality = named("reward-quality").load(run)
        assert filled(quality.params, NUMBER["reward-quality"]).keys() == quality.params.keys()
        step = make_step(session, {"start": weights(1), "anchor": weights(2), "reward": quality})
        prompts = step.prompts(step.fold, Draws(0, IDS, SOURCES), Seed((5,)))
        ys = [[[300 + g] for g in range(4)], [[400]] * 4]
        values = step.reward(Answers(prompts.inputs, None, [type(prompts.inputs).of(y) for y in ys]))
    assert prompts.references is None
    expected = [[score("", (tuple(x), tuple(y[g]))) for y in ys] for g, x in enumerate(prompts.inputs.rows())]
    np.testing.assert_allclose(values, expected, atol=1e-5)
