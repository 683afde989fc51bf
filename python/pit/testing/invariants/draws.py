"""Exact invariants of a policy: the sampler and the trainer are the same model, and samples end where they say."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from pit.testing.faults import Violation
from pit.testing.invariants.base import Exact, Material
from pit.testing.invariants.rows import SAME, require_close
from pit.testing.paths import separate_rows
from pit.testing.scorers import Level, asked, checked, rounding_of
from pit.testing.strategies.tokens import token_sequences


class Draw(NamedTuple):
    """Prompts (contents), a temperature and a seed."""

    prompts: tuple[tuple[int, ...], ...]
    temperature: float
    seed: int


@dataclass(frozen=True)
class DrawInvariant(Exact):
    """An exact invariant of what a policy draws; `test` raises where it does not hold."""

    test: Callable[[Any, Draw], None]

    def examples(self, material: Material) -> st.SearchStrategy[Draw]:
        """As many prompts as the format says, at temperatures around 1."""
        form = material.scorer.format
        prompt = token_sequences(form.content, form.longest)
        prompts = st.lists(prompt, min_size=form.prefixes, max_size=form.prefixes).map(tuple)
        # Each temperature is a program of its own.
        return st.builds(Draw, prompts, st.sampled_from((1.0, 0.5)), st.integers(0, 2**16))

    def check(self, scorer: Any, example: Draw) -> None:
        """Check one draw."""
        self.test(scorer, example)


def _drawn(scorer: Any, draw: Draw) -> Any:
    prompts = [[*prompt, scorer.format.closing] for prompt in draw.prompts]
    return asked(scorer, Level.SAMPLES, prompts, draw.temperature, draw.seed)


def _deterministic(scorer: Any, draw: Draw) -> None:
    one, two = _drawn(scorer, draw), _drawn(scorer, draw)
    require_close("token drawn again", one.token, two.token, 0.0)
    require_close("log-prob drawn again", one.logp, two.logp, 0.0)


def _ends(scorer: Any, draw: Draw) -> None:
    samples, form = _drawn(scorer, draw), scorer.format
    for place in np.ndindex(samples.length.shape):
        length, finished = int(samples.length[place]), bool(samples.finished[place])
        tokens = samples.token[place][:length].tolist()
        expected = tokens.index(form.eos) + 1 if form.eos in tokens else form.capacity
        if length != expected or finished != (form.eos in tokens):
            raise Violation(
                f"sample {list(place)} has length {length} and finished = {finished}, but its tokens are {tokens}, the "
                f"end is token {form.eos} and at most {form.capacity} are drawn"
            )


def _trainer_agrees(scorer: Any, draw: Draw) -> None:
    samples, form = _drawn(scorer, draw), scorer.format
    prompts = [[*prompt, form.closing] for prompt in draw.prompts]
    count = samples.length.shape[1]
    paths, sampled = [], []
    for tree, number in np.ndindex(samples.length.shape):
        tokens = samples.token[tree, number, : samples.length[tree, number]].tolist()
        paths.append((*prompts[tree], *tokens))
        sampled.append((len(prompts[tree]), len(tokens)))
    batch = separate_rows(paths, form.prefixes * count, form.longest + 1 + form.capacity)
    logp = checked("logprob_rows()", scorer.logprob_rows(batch, draw.temperature), batch.token.shape)
    for row, (first, length) in enumerate(sampled):
        recorded = samples.logp[row // count, row % count, :length]
        read = logp[row, first : first + length]
        require_close(f"log-prob of sample {row}: sampler", recorded, read, rounding_of(scorer))


def _alone(scorer: Any, draw: Draw) -> None:
    samples = _drawn(scorer, draw)
    # The first prompt stays where it is, as its place is its identity; all others change.
    others = draw._replace(prompts=(draw.prompts[0], *[draw.prompts[0]] * (len(draw.prompts) - 1)))
    again = _drawn(scorer, others)
    length = int(np.min([samples.length[0], again.length[0]]))
    require_close("log-prob beside other prompts", again.logp[0, :, :1], samples.logp[0, :, :1], rounding_of(scorer))
    if length and not np.array_equal(samples.token[0, :, 0], again.token[0, :, 0]):
        raise Violation(f"first tokens {samples.token[0, :, 0]} became {again.token[0, :, 0]} beside other prompts")


def _draw(name: str, statement: str, test: Callable[[Any, Draw], None], tolerance: str) -> DrawInvariant:
    source = "docs/rl.md: log-probs of the sampler and of the trainer agree at every temperature"
    return DrawInvariant(name, statement, source, frozenset({Level.SAMPLES}), tolerance, test)


DRAW_INVARIANTS: tuple[DrawInvariant, ...] = (
    _draw("draws_deterministic", "samples(x, seed) = samples(x, seed)", _deterministic, SAME),
    _draw("draws_end", "length = place of the first EOS, or the window; finished iff there is one", _ends, SAME),
    _draw(
        "sampler_is_trainer",
        "log p of the sampler = log p of the trainer, at the temperature",
        _trainer_agrees,
        "rounding * max(1, |log p|)",
    ),
    _draw(
        "draws_alone",
        "the first token of a sample does not depend on other prompts",
        _alone,
        "rounding * max(1, |log p|)",
    ),
)
"""Exact invariants of policies."""
