"""Iterated self-improvement at inference: y0 from the policy, then the improver on its own answers (PIT, algorithm 2).

The paper has no working stop rule. Here a candidate replaces the answer only if its gap over it (centred, or symmetric)
exceeds a threshold; a rejected candidate leaves the answer as it was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from pit.config import AcceptBy, ImproveConfig, PackingConfig
from pit.data.tokens import Sequences, Tokens
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rollout.protocol import SamplerProtocol
from pit.rollout.score import LikelihoodScorer, ModelScorer, Scorer
from pit.rollout.strategy import Filter, MinP, Strategy, TopK, TopP, strategy_at
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.seeds import Seed
from pit.stages import refresh, rl, sft
from pit.stages.graph import improver_of


@dataclass(frozen=True)
class Step:
    """One pass: the improver's candidate, its gap over the answer before, and the answer that is kept."""

    candidate: list[int]
    gap: float
    accepted: bool
    answer: list[int]


@dataclass(frozen=True)
class Trajectory:
    """y0 of one prompt and the passes after it. All token lists are contents, without closing tokens."""

    request: int
    prompt: list[int]
    first: list[int]
    steps: tuple[Step, ...]

    def answer(self, iteration: int) -> list[int]:
        """Return the answer kept after `iteration` passes; 0 is y0."""
        return self.first if iteration == 0 else self.steps[iteration - 1].answer


@dataclass(frozen=True)
class Models:
    """Models of an improvement: the policy that answers, the improver, and the scorer whose gap accepts.

    The policy is None where all answers are given.
    """

    policy: Model[Decoder] | None
    improver: Model[Decoder]
    scorer: Scorer
    sampler: SamplerProtocol

    @classmethod
    def load(
        cls,
        run: Run,
        packing: PackingConfig,
        policy: Stage | None = rl.POLICY,
        improver: Stage | None = None,
        accept_by: AcceptBy | None = None,
    ) -> "Models":
        """Load the finished models of a run.

        Args:
            run: the run.
            packing: shape of the rows that the scorer reads.
            policy: stage that answers; None where all answers are given.
            improver: stage that improves; the last RL stage of the improver if not given.
            accept_by: the gap that accepts; the config's if not given.
        """
        layout = run.layout(packing)
        scorer: Scorer
        if (accept_by or run.config.improve.accept_by) == "likelihood":
            scorer = LikelihoodScorer(sft.IMPROVER.load(run), layout)
        else:
            scorer = ModelScorer(refresh.last_gap(run.config).load(run), layout)
        improver = improver or improver_of(run.config)
        answering = None if policy is None else policy.load(run)
        return cls(answering, improver.load(run), scorer, run.sampler(run.config.improve.rollout))

    def respond(self, prompts: Tokens, requests: Sequence[int], config: ImproveConfig, seed: Seed) -> Tokens:
        """Return y0 of each prompt.

        Raises:
            ValueError: there is no policy.
        """
        if self.policy is None:
            raise ValueError("policy = None: these models answer no prompts; load them with one, or give the answers")
        return self.sampler.answers(
            self.policy, requests, prompts, strategy=strategy_of(config), seed=seed.of("y0").number
        )

    # Six parameters: what is refined, how, and under which random numbers.
    def refine(
        self, prompts: Tokens, answers: Tokens, requests: Sequence[int], config: ImproveConfig, seed: Seed, number: int
    ) -> Tokens:
        """Return the improver's candidate for each prompt and answer, in pass `number`."""
        return self.sampler.answers(
            self.improver, requests, prompts, answers, strategy=strategy_of(config), seed=seed.of("pass", number).number
        )


def strategy_of(config: ImproveConfig) -> Strategy:
    """Return the sampling strategy of a config."""
    return sampling(config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)


def sampling(
    temperature: float, *, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None
) -> Strategy:
    """Return the strategy of a temperature, then top-k, top-p and min-p where they are given, in this order."""
    filters: list[Filter] = []
    if top_k is not None:
        filters.append(TopK(top_k))
    if top_p is not None:
        filters.append(TopP(top_p))
    if min_p is not None:
        filters.append(MinP(min_p))
    return strategy_at(temperature, *filters)


class Pass(NamedTuple):
    """One pass over n answers: candidates, their gaps over the answers before, which are accepted, and what is kept."""

    candidates: Tokens
    gaps: Float32[np.ndarray, " n"]
    accepted: Bool[np.ndarray, " n"]
    kept: Tokens


# Six parameters: what is improved, by what, and the rule.
def passes(
    prompts: Tokens,
    first: Tokens,
    refine: Callable[[Tokens, int], Tokens],
    scorer: Scorer,
    config: ImproveConfig,
    *,
    stop_rule: bool = True,
) -> Iterator[Pass]:
    """Yield the passes of the improver over a batch of answers, one after the other.

    Args:
        prompts: contents of x.
        first: contents of y0.
        refine: returns candidates for the answers of the moment, in a pass of some number, from 1.
        scorer: the gap that accepts.
        config: iterations, form of the gap, threshold.
        stop_rule: accept by the gap; otherwise every candidate is kept.
    """
    answers = first
    for number in range(1, config.iterations + 1):
        candidates = refine(answers, number)
        gaps = scorer.gap(prompts, answers, [candidates], config.gap)[:, 0]
        accepted = gaps > config.threshold if stop_rule else np.ones(len(gaps), bool)
        answers = candidates.where(accepted, answers)
        yield Pass(candidates, gaps, accepted, answers)


def improve(
    models: Models,
    prompts: Sequences,
    requests: Sequence[int],
    config: ImproveConfig,
    *,
    seed: Seed,
    answers: Sequences | None = None,
    stop_rule: bool = True,
) -> Iterator[Trajectory]:
    """Improve answers batch by batch.

    Args:
        models: the trained models.
        prompts: contents of x.
        requests: id of each prompt; with the seed it decides the random numbers, so results do not depend on batches.
        config: iterations, temperature and filters, form of the gap, threshold, batch.
        seed: root of the random numbers.
        answers: given y0; sampled from the policy where None.
        stop_rule: accept by the gap; otherwise every candidate is kept (the paper's plain iteration).
    """
    prompts = Tokens.of(prompts)
    given = None if answers is None else Tokens.of(answers)
    for begin in range(0, len(prompts), config.batch):
        piece = slice(begin, begin + config.batch)
        xs, ids = prompts[piece], list(requests[piece])
        first = models.respond(xs, ids, config, seed) if given is None else given[piece]

        def refine(current: Tokens, number: int, xs: Tokens = xs, ids: Sequence[int] = ids) -> Tokens:
            return models.refine(xs, current, ids, config, seed, number)

        batch = list(passes(xs, first, refine, models.scorer, config, stop_rule=stop_rule))
        for row, request in enumerate(ids):
            yield Trajectory(request, xs[row].tolist(), first[row].tolist(), steps_of(batch, row))


def steps_of(batch: Sequence[Pass], row: int) -> tuple[Step, ...]:
    """Return the steps of one answer of a batch."""
    return tuple(
        Step(p.candidates[row].tolist(), float(p.gaps[row]), bool(p.accepted[row]), p.kept[row].tolist()) for p in batch
    )
