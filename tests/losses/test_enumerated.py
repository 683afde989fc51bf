"""Every KL mode against the exact objective, by listing all samples of a tiny language, in float64."""

import functools
from pathlib import Path
from typing import NamedTuple

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
ESTIMATORS, MODES = tiny.ESTIMATORS, tiny.MODES
BETA, BONUS = 0.7, 0.3
SCORES = np.random.default_rng(1).normal(size=27)
EXACT = {"rtol": 1e-9, "atol": 1e-12}
DOCS = Path(__file__).parents[2] / "docs" / "concepts" / "rl.md"


class Figures(NamedTuple):
    """Probability of each sample, estimates of the KL from each, and values and gradients of `OBJECTIVES`."""

    chance: jax.Array
    estimates: dict[str, jax.Array]
    value: dict[str, jax.Array]
    gradient: dict[str, jax.Array]


@functools.cache
def figures(temperature):
    """Compiled: the figures of (policy, anchor, places), with gradients at the policy."""

    def values(logits, anchor, places):
        value = {name: objective(logits, anchor, places, temperature) for name, objective in OBJECTIVES.items()}
        return value, value

    def compute(logits, anchor, places):
        gradient, value = jax.jacrev(values, has_aux=True)(logits, anchor, places)
        estimates = {name: estimate(name, logits, anchor, places, temperature) for name in ESTIMATORS}
        return Figures(tiny.probability(logits, places, temperature), estimates, value, gradient)

    return twins.jit(compute)


class Case:
    """A language with a policy, an anchor and a score of every sample.

    distance: scale of the logits of the anchor less those of the policy; random logits of its own if None.
    """

    def __init__(self, language, temperature, distance=None):
        rng = np.random.default_rng(0)
        self.places = tiny.Arrays(*map(jnp.asarray, tiny.arrays(language)))
        self.temperature = temperature
        self.logits, self.anchor = tiny.table(language, rng), tiny.table(language, rng)
        if distance is not None:
            self.anchor = self.logits + distance * self.anchor
        self.score = jnp.asarray(SCORES)

    @functools.cached_property
    def exact(self):
        return figures(self.temperature)(self.logits, self.anchor, self.places)

    @functools.cached_property
    def steps(self):
        """Name of each step loss to its expected gradient over all pairs of samples, and its spread."""
        return self.steps_with(self.score)

    def steps_with(self, score):
        compiled = tiny.expected_steps(tiny.Settings(self.temperature, BETA, BONUS))
        return compiled(self.logits, self.anchor, self.places, score, self.exact.estimates)


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
    chance = case.exact.chance
    np.testing.assert_allclose(jnp.sum(chance), 1.0, **EXACT)
    np.testing.assert_array_equal(chance > 0, case.places.sampled[:, 0])


def test_k1_k3_and_full_have_the_kl_as_their_expectation_and_k2_another(case):
    exact = case.exact
    kl, k2 = exact.value["kl"], exact.value["k2"]
    assert kl > 0.05
    for estimator in ("k1", "k3", "full"):
        np.testing.assert_allclose(jnp.sum(exact.chance * exact.estimates[estimator]), kl, **EXACT)
    np.testing.assert_allclose(jnp.sum(exact.chance * exact.estimates["k2"]), k2, **EXACT)
    assert abs(k2 - kl) > 1e-3 * kl


def test_k2_comes_near_the_kl_where_the_policy_comes_near_its_anchor():
    cases = [Case(LANGUAGES["one eos"], 1.0, distance).exact for distance in (0.1, 0.01)]
    errors = [abs(case.value["k2"] / case.value["kl"] - 1) for case in cases]
    # The error of the value is of third order, the KL of second.
    assert errors[1] < 0.2 * errors[0] < 0.02


def gain(logits, anchor, places, temperature):
    """E[reward] without the KL."""
    return jnp.sum(tiny.probability(logits, places, temperature) * tiny.plain_reward(jnp.asarray(SCORES), places))


@pytest.mark.parametrize("mode", MODES, ids="-".join)
def test_every_mode_has_the_gradient_it_claims(case, mode):
    """Over all pairs: the gradient of E[reward] - beta KL; for k2 in the reward, of E[reward] - beta E[k2]."""
    expected, _ = case.steps["-".join(mode)]
    gradient = case.exact.gradient
    penalty = gradient["k2" if mode == ("k2", "reward") else "kl"]
    np.testing.assert_allclose(expected, -(gradient["gain"] - BETA * penalty), **EXACT)


def test_the_entropy_bonus_has_the_gradient_of_the_entropy_of_whole_samples(case):
    (expected, _), (without, _) = case.steps[tiny.BONUS], case.steps["k1-loss"]
    np.testing.assert_allclose(expected - without, -BONUS * case.exact.gradient["entropy"], **EXACT)


def weighed(costs):
    """sum_y p(y) cost(y) with constant p, so that the gradient is that of the costs alone."""

    def total(logits, anchor, places, temperature):
        chance = jax.lax.stop_gradient(tiny.probability(logits, places, temperature))
        return jnp.sum(chance * costs(logits, anchor, places, temperature))

    return total


def differentiated_term(estimator):
    """An estimate as a loss without its score term: the part that is differentiated."""

    def costs(logits, anchor, places, temperature):
        if estimator == "full":
            against = tiny.token_full_kl(logits, anchor, places, temperature)
        else:
            against = tiny.token_logp(anchor, places, temperature)
        logp = tiny.token_logp(logits, places, temperature)
        return kl_cost(estimator, "reward", logp[:, None], against[:, None], places.sampled[:, None])[:, 0]

    return weighed(costs)


def score_term(estimator):
    """An estimate in the reward alone: E[estimate * grad log p(sample)]."""

    def costs(logits, anchor, places, temperature):
        constant = jax.lax.stop_gradient(estimate(estimator, logits, anchor, places, temperature))
        return constant * jnp.sum(tiny.token_logp(logits, places, temperature), axis=-1)

    return weighed(costs)


def at_states_visited(divergence):
    """A divergence of the next token's distributions, summed over the states with their present probabilities."""

    def total(logits, anchor, places, temperature):
        chance = jax.lax.stop_gradient(tiny.probability(logits, places, temperature))
        log_p, log_q = (jax.nn.log_softmax(x / temperature, axis=-1)[places.context] for x in (logits, anchor))
        return jnp.sum(chance[:, None] * jnp.where(places.sampled, divergence(log_p, log_q), 0.0))

    return total


@weighed
def log_ratio(logits, anchor, places, temperature):
    return jnp.sum(tiny.token_logp(logits, places, temperature) - tiny.token_logp(anchor, places, temperature), axis=-1)


REVERSE = at_states_visited(lambda log_p, log_q: jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
FORWARD = at_states_visited(lambda log_p, log_q: jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1))
OBJECTIVES = {
    "kl": tiny.exact_kl,
    "k2": tiny.exact_k2,
    "entropy": tiny.exact_entropy,
    "gain": gain,
    "log ratio": log_ratio,
    "reverse": REVERSE,
    "forward": FORWARD,
    **{f"differentiated {name}": differentiated_term(name) for name in ESTIMATORS},
    **{f"score {name}": score_term(name) for name in ESTIMATORS},
}
"""Functions of (policy, anchor, places, temperature), all in one compiled program."""


def test_k1_alone_in_a_loss_teaches_nothing(case):
    np.testing.assert_allclose(case.exact.gradient["log ratio"], 0, atol=1e-12)


def test_without_the_score_term_k2_full_and_k3_see_no_further_than_the_next_token(case):
    """K2 and full then have the reverse KL's gradient at the states visited; k3 has the forward KL's."""
    gradient = case.exact.gradient
    for estimator, divergence in (("k2", "reverse"), ("full", "reverse"), ("k3", "forward")):
        np.testing.assert_allclose(gradient[f"differentiated {estimator}"], gradient[divergence], **EXACT)
    for name in ("reverse", "forward", "score k3", "score full"):
        assert jnp.linalg.norm(gradient[name] - gradient["kl"]) > 0.03 * jnp.linalg.norm(gradient["kl"])


def measured():
    """Rows of the tables in docs/concepts/rl.md: error of the KL's expected gradient, and spread of one pair's."""
    case = case_of("one eos", 1.0)
    gradient = case.exact.gradient

    def relative(value):
        return f"{float(value / jnp.linalg.norm(gradient['kl'])):.2f}"

    # With these scores nothing is left of the reward but the KL.
    penalties = twins.jit(tiny.plain_reward)(jnp.zeros_like(case.score), case.places)
    steps, rows = case.steps_with(-penalties), []
    for mode in MODES:
        mean, spread = steps["-".join(mode)]
        rows.append([*mode, relative(jnp.linalg.norm(mean / BETA - gradient["kl"])), relative(spread / BETA)])
    for name in ESTIMATORS:
        terms = (gradient[f"{term} {name}"] for term in ("score", "differentiated"))
        rows.append([name, *(relative(jnp.linalg.norm(term - gradient["kl"])) for term in terms)])
    return rows


def test_the_tables_of_the_documentation_are_what_is_measured():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCS.read_text().splitlines()]
    assert [cells for cells in lines if cells[0] in ESTIMATORS] == measured()
