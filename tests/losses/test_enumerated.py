"""Every KL mode against the exact objective, by writing down all samples of a tiny language, in float64."""

import functools
from pathlib import Path

import enumerated as tiny
import jax
import jax.numpy as jnp
import numpy as np
import path_twins as twins
import pytest

from pit.losses.kl import kl_cost, token_kl

LANGUAGES = {
    "one eos": tiny.Language(3, 3, (2,)),
    "two eos": tiny.Language(3, 3, (0, 2)),
    "no eos": tiny.Language(3, 3, ()),
}
ESTIMATORS, PLACES = ("k1", "k2", "k3", "full"), ("reward", "loss")
MODES = [(estimator, place) for place in PLACES for estimator in ESTIMATORS]
BETA, BONUS = 0.7, 0.3
SCORES = np.random.default_rng(1).normal(size=27)
EXACT = {"rtol": 1e-9, "atol": 1e-12}
DOCS = Path(__file__).parents[2] / "docs" / "rl.md"


@functools.cache
def compiled(function, temperature):
    """A function of (policy, anchor, places, temperature) with its gradient at the policy."""
    return twins.jit(jax.value_and_grad(lambda logits, anchor, places: function(logits, anchor, places, temperature)))


class Case:
    """A language with a policy, an anchor and a score of every sample."""

    def __init__(self, language, temperature):
        rng = np.random.default_rng(0)
        self.places = tiny.Arrays(*map(jnp.asarray, tiny.arrays(language)))
        self.temperature = temperature
        self.logits, self.anchor = tiny.table(language, rng), tiny.table(language, rng)
        self.score = jnp.asarray(SCORES)

    @property
    def chance(self):
        return tiny.probability(self.logits, self.places, self.temperature)

    def exact(self, function):
        """Value and gradient at the policy of a function of (policy, anchor, places, temperature)."""
        return compiled(function, self.temperature)(self.logits, self.anchor, self.places)

    def estimates(self, estimator):
        """[S] estimates of the KL, one from each sample."""
        return estimate(estimator, self.logits, self.anchor, self.places, self.temperature)

    def step(self, mode, score, beta=BETA, entropy=0.0):
        """Expected gradient of a step over all pairs of samples, and its spread."""
        samples = tiny.Tree(self.places, score, self.estimates(mode[0]))
        return tiny.expected_step(mode, self.temperature, beta, entropy)(self.logits, self.anchor, samples)

    def undoing_penalties(self):
        """Scores that leave nothing of the reward but the KL."""
        return -tiny.plain_reward(jnp.zeros_like(self.score), self.places)


def estimate(estimator, logits, anchor, places, temperature):
    if estimator == "full":
        tokens = tiny.token_full_kl(logits, anchor, places, temperature)
    else:
        ratio = tiny.token_logp(logits, places, temperature) - tiny.token_logp(anchor, places, temperature)
        tokens = token_kl(estimator, ratio)
    return jnp.sum(jnp.where(places.sampled, tokens, 0.0), axis=-1)


@functools.cache
def case_of(name, temperature):
    return Case(LANGUAGES[name], temperature)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


TEMPERATURES = (1.0, pytest.param(1.7, marks=pytest.mark.slow), pytest.param(0.6, marks=pytest.mark.slow))


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(params=TEMPERATURES, ids=str)
def case(language, request):
    return case_of(language, request.param)


def test_the_samples_of_a_language_are_all_there_are(case):
    np.testing.assert_allclose(jnp.sum(case.chance), 1.0, **EXACT)
    assert np.any(case.chance > 0)
    np.testing.assert_array_equal(case.chance > 0, case.places.sampled[:, 0])


def test_k1_k3_and_full_have_the_kl_as_their_expectation_and_k2_its_own(case):
    kl, _ = case.exact(tiny.exact_kl)
    assert kl > 0.05
    for estimator in ("k1", "k3", "full"):
        np.testing.assert_allclose(jnp.sum(case.chance * case.estimates(estimator)), kl, **EXACT)
    own, _ = case.exact(tiny.exact_k2)
    np.testing.assert_allclose(jnp.sum(case.chance * case.estimates("k2")), own, **EXACT)
    assert abs(own - kl) > 1e-3 * kl


def test_k2_comes_near_the_kl_where_the_policy_comes_near_its_anchor():
    case, errors = Case(LANGUAGES["one eos"], 1.0), []
    away = case.anchor
    for step in (0.1, 0.01):
        case.anchor = case.logits + step * away
        kl, _ = case.exact(tiny.exact_kl)
        errors.append(abs(jnp.sum(case.chance * case.estimates("k2")) / kl - 1))
    # The error of the value is of third order, the KL of second.
    assert errors[1] < 0.2 * errors[0] < 0.02


def gained(logits, anchor, places, temperature):
    """E[reward] but for the KL."""
    return jnp.sum(tiny.probability(logits, places, temperature) * tiny.plain_reward(jnp.asarray(SCORES), places))


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_every_mode_has_the_gradient_it_claims(case, mode):
    """Over all pairs: the gradient of E[reward] - beta KL; for k2 in the reward, of E[reward] - beta E[k2]."""
    expected, _ = case.step(mode, case.score)
    _, penalty = case.exact(tiny.exact_k2 if mode == ("k2", "reward") else tiny.exact_kl)
    _, gain = case.exact(gained)
    np.testing.assert_allclose(expected, -(gain - BETA * penalty), **EXACT)


def test_the_entropy_bonus_has_the_gradient_of_the_entropy_of_whole_samples(case):
    expected, _ = case.step(("k1", "loss"), case.score, entropy=BONUS)
    without, _ = case.step(("k1", "loss"), case.score)
    _, entropy = case.exact(tiny.exact_entropy)
    np.testing.assert_allclose(expected - without, -BONUS * entropy, **EXACT)


def weighed(costs):
    """sum_y p(y) cost(y), the chances held constant, so that the gradient is that of the costs alone."""

    def total(logits, anchor, places, temperature):
        chance = jax.lax.stop_gradient(tiny.probability(logits, places, temperature))
        return jnp.sum(chance * costs(logits, anchor, places, temperature))

    return total


def own_term(estimator):
    """What is differentiated of an estimate, as a loss without its score term."""

    def costs(logits, anchor, places, temperature):
        if estimator == "full":
            against = tiny.token_full_kl(logits, anchor, places, temperature)
        else:
            against = tiny.token_logp(anchor, places, temperature)
        logp = tiny.token_logp(logits, places, temperature)
        return kl_cost(estimator, "reward", logp[:, None], against[:, None], places.sampled[:, None])[:, 0]

    return weighed(costs)


def score_term(estimator):
    """The estimate in the reward alone: E[estimate * grad log p(sample)]."""

    def costs(logits, anchor, places, temperature):
        constant = jax.lax.stop_gradient(estimate(estimator, logits, anchor, places, temperature))
        return constant * jnp.sum(tiny.token_logp(logits, places, temperature), axis=-1)

    return weighed(costs)


def at_states_visited(divergence):
    """A divergence of the next token's distributions, summed over the states, as often as they are visited now."""

    def total(logits, anchor, places, temperature):
        chance = jax.lax.stop_gradient(tiny.probability(logits, places, temperature))
        log_p, log_q = (jax.nn.log_softmax(x / temperature, axis=-1)[places.context] for x in (logits, anchor))
        return jnp.sum(chance[:, None] * jnp.where(places.sampled, divergence(log_p, log_q), 0.0))

    return total


@weighed
def log_ratio(logits, anchor, places, temperature):
    return jnp.sum(tiny.token_logp(logits, places, temperature) - tiny.token_logp(anchor, places, temperature), axis=-1)


OWN, SCORE = ({name: make(name) for name in ESTIMATORS} for make in (own_term, score_term))
REVERSE = at_states_visited(lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
FORWARD = at_states_visited(lambda log_p, log_q: jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1))


def test_k1_alone_in_a_loss_teaches_nothing(case):
    np.testing.assert_allclose(case.exact(log_ratio)[1], 0, atol=1e-12)


def test_without_the_score_term_k2_full_and_k3_see_no_further_than_the_next_token(case):
    """K2 and full then have the reverse KL's gradient at the states visited; k3 has the forward KL's."""
    for estimator, divergence in (("k2", REVERSE), ("full", REVERSE), ("k3", FORWARD)):
        np.testing.assert_allclose(case.exact(OWN[estimator])[1], case.exact(divergence)[1], **EXACT)
    _, kl = case.exact(tiny.exact_kl)
    for part in (REVERSE, FORWARD, SCORE["k3"], SCORE["full"]):
        assert jnp.linalg.norm(case.exact(part)[1] - kl) > 0.03 * jnp.linalg.norm(kl)


def measured():
    """Rows of the tables in docs/rl.md: relative error of the KL's expected gradient, and spread of one pair's."""
    case = case_of("one eos", 1.0)
    _, exact = case.exact(tiny.exact_kl)

    def relative(value):
        return f"{float(value / jnp.linalg.norm(exact)):.2f}"

    rows = []
    for mode in MODES:
        mean, spread = case.step(mode, case.undoing_penalties())
        rows.append([*mode, relative(jnp.linalg.norm(mean / BETA - exact)), relative(spread / BETA)])
    for estimator in ESTIMATORS:
        parts = (case.exact(terms[estimator])[1] for terms in (SCORE, OWN))
        rows.append([estimator, *(relative(jnp.linalg.norm(part - exact)) for part in parts)])
    return rows


def test_the_tables_of_the_documentation_are_what_is_measured():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCS.read_text().splitlines()]
    assert [cells for cells in lines if cells[0] in ESTIMATORS] == measured()
