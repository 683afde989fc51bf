"""Exact invariants of a policy: sampler and trainer compute the same model, and samples end where they claim to.

The samples come from the scorer's `draw`, the trainer's log-probs from its `logprob_rows`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from pit.testing.errors import InvariantError
from pit.testing.invariants.base import Exact, Material
from pit.testing.invariants.rows import SAME, require_close
from pit.testing.paths import separate_rows
from pit.testing.scorers import Method, call_scorer, check_array, rounding_of
from pit.testing.strategies.tokens import token_sequences

_TOLERANCE = "rounding * max(1, |log p|)"


class DrawCall(NamedTuple):
    """The arguments of one call to `draw`.

    prompts: token contents without their closing tokens.
    temperature: 0 for the most likely token.
    seed: seed of the samples.
    filters: names and numbers of the filters, see `pit.rollout.strategy.FILTERS`; empty for none.
    """

    prompts: tuple[tuple[int, ...], ...]
    temperature: float
    seed: int
    filters: tuple[tuple[str, float], ...] = ()


PLAIN = ((1.0, ()), (0.5, ()))
"""Temperatures of samplers without filters."""

SETTINGS: tuple[tuple[float, tuple[tuple[str, float], ...]], ...] = (
    *PLAIN,
    (0.0, ()),
    (1.0, (("top_k", 3.0),)),
    (0.5, (("top_p", 0.8),)),
    (1.0, (("min_p", 0.2),)),
)
"""Temperatures and filters that are tried; each compiles a separate program."""


@dataclass(frozen=True)
class DrawInvariant(Exact):
    """An exact invariant of the samples of a policy.

    test: function of scorer and call that raises InvariantError where the invariant does not hold.
    """

    test: Callable[[Any, DrawCall], None]

    def examples(self, material: Material) -> st.SearchStrategy[DrawCall]:
        """Return a strategy for calls with the format's number of prompts, under every setting."""
        form = material.scorer.format
        prompt = token_sequences(form.content, form.longest)
        prompts = st.lists(prompt, min_size=form.prefixes, max_size=form.prefixes).map(tuple)
        setting = st.sampled_from(settings_of(material.scorer))
        return st.builds(_call, prompts, setting, st.integers(0, 2**16))

    def check(self, scorer: Any, example: DrawCall) -> None:
        """Check one call.

        Raises:
            InvariantError: the invariant does not hold.
        """
        self.test(scorer, example)


def settings_of(scorer: Any) -> tuple[tuple[float, tuple[tuple[str, float], ...]], ...]:
    """Return the temperatures and filters that a sampler knows."""
    return SETTINGS if scorer.format.filters else PLAIN


def _call(
    prompts: tuple[tuple[int, ...], ...], setting: tuple[float, tuple[tuple[str, float], ...]], seed: int
) -> DrawCall:
    return DrawCall(prompts, setting[0], seed, setting[1])


def _samples(scorer: Any, call: DrawCall) -> Any:
    prompts = [[*prompt, *scorer.format.closing] for prompt in call.prompts]
    filters = (dict(call.filters),) if scorer.format.filters else ()
    return call_scorer(scorer, Method.SAMPLES, prompts, call.temperature, call.seed, *filters)


def _deterministic(scorer: Any, call: DrawCall) -> None:
    first, second = _samples(scorer, call), _samples(scorer, call)
    require_close("token of a second call", second.token, first.token, 0.0)
    require_close("log-prob of a second call", second.logp, first.logp, 0.0)


def _ends(scorer: Any, call: DrawCall) -> None:
    samples, form = _samples(scorer, call), scorer.format
    for index in np.ndindex(samples.length.shape):
        length, finished = int(samples.length[index]), bool(samples.finished[index])
        tokens = samples.token[index][:length].tolist()
        expected = tokens.index(form.eos) + 1 if form.eos in tokens else form.capacity
        if length != expected or finished != (form.eos in tokens):
            raise InvariantError(
                f"sample {list(index)} has length {length} and finished = {finished}, but its tokens are {tokens}, "
                f"EOS is token {form.eos} and the window holds {form.capacity} tokens"
            )


def both_logprobs(scorer: Any, call: DrawCall) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the log-probs of each sample's tokens, as the sampler recorded them and as the trainer computes them.

    A greedy sampler records those at temperature 1.

    Raises:
        InvariantError: the scorer fails.
    """
    samples, form = _samples(scorer, call), scorer.format
    prompts = [[*prompt, *form.closing] for prompt in call.prompts]
    count = samples.length.shape[1]
    paths, spans = [], []
    for tree, number in np.ndindex(samples.length.shape):
        tokens = samples.token[tree, number, : samples.length[tree, number]].tolist()
        paths.append((*prompts[tree], *tokens))
        spans.append((len(prompts[tree]), len(tokens)))
    batch = separate_rows(paths, form.prefixes * count, form.longest + len(form.closing) + form.capacity)
    logp = check_array("logprob_rows()", scorer.logprob_rows(batch, call.temperature or 1.0), batch.token.shape)
    return [
        (samples.logp[row // count, row % count, :length], logp[row, first : first + length])
        for row, (first, length) in enumerate(spans)
    ]


def _trainer_agrees(scorer: Any, call: DrawCall) -> None:
    for row, (recorded, recomputed) in enumerate(both_logprobs(scorer, call)):
        require_close(f"log-prob of sample {row}: sampler", recorded, recomputed, rounding_of(scorer))


def _drawn(scorer: Any, call: DrawCall) -> None:
    samples = _samples(scorer, call)
    for index in np.ndindex(samples.length.shape):
        length = int(samples.length[index])
        drawn, logp = samples.drawn_logp[index][:length], samples.logp[index][:length]
        if call.temperature == 0:
            require_close(f"log-prob of the greedy draw of sample {list(index)}", drawn, np.zeros_like(drawn), 0.0)
        elif not call.filters:
            require_close(f"log-prob of the draw of sample {list(index)}", drawn, logp, 0.0)
        else:
            # A filter moves probability to the tokens that it keeps.
            require_close(
                f"log-prob of the draw of sample {list(index)}", drawn, np.maximum(drawn, logp), rounding_of(scorer)
            )


def _alone(scorer: Any, call: DrawCall) -> None:
    samples = _samples(scorer, call)
    # The first prompt keeps its index, which seeds its samples; all others change.
    others = call._replace(prompts=(call.prompts[0], *[call.prompts[0]] * (len(call.prompts) - 1)))
    again = _samples(scorer, others)
    length = int(np.min([samples.length[0], again.length[0]]))
    alone, together = samples.logp[0, :, :1], again.logp[0, :, :1]
    require_close("log-prob next to other prompts", together, alone, rounding_of(scorer))
    if length and not np.array_equal(samples.token[0, :, 0], again.token[0, :, 0]):
        raise InvariantError(
            f"first tokens {samples.token[0, :, 0]} became {again.token[0, :, 0]} next to other prompts"
        )


def _draw(name: str, statement: str, test: Callable[[Any, DrawCall], None], tolerance: str) -> DrawInvariant:
    source = "docs/concepts/rl.md: log-probs of the sampler and of the trainer agree at every temperature"
    return DrawInvariant(name, statement, source, frozenset({Method.SAMPLES}), tolerance, test)


DRAW_INVARIANTS: tuple[DrawInvariant, ...] = (
    _draw("draws_deterministic", "two calls with the same x and seed give the same samples", _deterministic, SAME),
    _draw("draws_end", "length = tokens up to the first EOS, or the window; finished iff there is an EOS", _ends, SAME),
    _draw(
        "sampler_is_trainer",
        "log p of the sampler = log p of the trainer, at the temperature",
        _trainer_agrees,
        _TOLERANCE,
    ),
    _draw(
        "drawn_logp",
        "log p of the draw = log p of the policy, >= it under a filter, 0 if greedy",
        _drawn,
        _TOLERANCE,
    ),
    _draw("draws_alone", "the first token of a sample does not depend on other prompts", _alone, _TOLERANCE),
)
"""Exact invariants of policies."""
