"""Iterated self-improvement at inference: y0 from the policy, then the improver on its own answers (PIT, algorithm 2).

The paper has no working stop rule; here a candidate replaces the answer only if its gap over it (centred, or
symmetric) exceeds a threshold, and a rejected candidate keeps the answer as it was.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from pit.config import AcceptBy, ImproveConfig, PackingConfig
from pit.model.params import Params
from pit.rollout.sample import sample
from pit.rollout.score import Judge, Likelihood, Scorer
from pit.rollout.strategy import Filter, MinP, Strategy, TopK, TopP, strategy_at
from pit.stages.context import Run, improver_of, last_reward

Tokens = list[int]


@dataclass(frozen=True)
class Step:
    """One pass: the improver's candidate, its gap over the answer before, and the answer that is kept."""

    candidate: Tokens
    gap: float
    accepted: bool
    answer: Tokens


@dataclass(frozen=True)
class Trajectory:
    """y0 and the passes after it, of one prompt. All token lists are contents, without closing role tokens."""

    request: int
    prompt: Tokens
    first: Tokens
    steps: tuple[Step, ...]

    def answer(self, iteration: int) -> Tokens:
        """The answer kept after `iteration` passes; 0 is y0."""
        return self.first if iteration == 0 else self.steps[iteration - 1].answer


@dataclass(frozen=True)
class Models:
    """What improvement needs: the policy that answers, the improver, and whose gap accepts."""

    policy: tuple[nnx.GraphDef[Any], Params]
    improver: tuple[nnx.GraphDef[Any], Params]
    gap: Judge
    closings: tuple[int, int, int]
    capacity: int

    @classmethod
    def load(
        cls,
        run: Run,
        packing: PackingConfig,
        policy: str = "rl-policy",
        improver: str | None = None,
        accept_by: AcceptBy | None = None,
    ) -> "Models":
        """The finished models of a run, by stage name.

        The improver is that of the last stage, and whose gap accepts is what the config says, where none is named.
        """
        layout = run.layout(packing)
        gap: Judge
        if (accept_by or run.config.improve.accept_by) == "likelihood":
            gap = Likelihood(*run.trained("sft-improver"), layout)
        else:
            gap = Scorer(*run.trained(last_reward("gap", run.config)), layout)
        improver = improver_of(run.config) if improver is None else improver
        return cls(run.trained(policy), run.trained(improver), gap, layout.closings, run.config.windows.output - 1)

    def respond(
        self, prompts: Sequence[Tokens], requests: Sequence[int], config: ImproveConfig, seed: int
    ) -> list[Tokens]:
        """y0 of each prompt."""
        inputs = [[*x, self.closings[0]] for x in prompts]
        return self._draw(self.policy, inputs, requests, config, seed)

    def refine(
        self,
        prompts: Sequence[Tokens],
        references: Sequence[Tokens],
        requests: Sequence[int],
        config: ImproveConfig,
        seed: int,
    ) -> list[Tokens]:
        """The improver's candidate for each prompt and reference."""
        inputs = [[*x, self.closings[0], *ref, self.closings[1]] for x, ref in zip(prompts, references, strict=True)]
        return self._draw(self.improver, inputs, requests, config, seed)

    def _draw(
        self,
        model: tuple[nnx.GraphDef[Any], Params],
        inputs: Sequence[Tokens],
        requests: Sequence[int],
        config: ImproveConfig,
        seed: int,
    ) -> list[Tokens]:
        drawn = sample(
            *model,
            inputs,
            requests,
            n=1,
            capacity=self.capacity,
            strategy=strategy_of(config),
            eos_ids=(self.closings[2],),
            seed=seed,
            config=config.rollout,
        )
        return [drawn.answer(g, 0) for g in range(len(inputs))]


def strategy_of(config: ImproveConfig) -> Strategy:
    """How answers are drawn: at the temperature, among the tokens that top-k, top-p and min-p leave, in this order."""
    filters: list[Filter] = []
    if config.top_k is not None:
        filters.append(TopK(config.top_k))
    if config.top_p is not None:
        filters.append(TopP(config.top_p))
    if config.min_p is not None:
        filters.append(MinP(config.min_p))
    return strategy_at(config.temperature, *filters)


def improve(
    models: Models,
    prompts: Sequence[Tokens],
    requests: Sequence[int],
    config: ImproveConfig,
    *,
    seed: int,
    answers: Sequence[Tokens] | None = None,
    stop_rule: bool = True,
) -> Iterator[Trajectory]:
    """Improve answers batch by batch.

    Args:
        models: the trained models.
        prompts: contents of x.
        requests: an id of each prompt; it and the seed decide the random numbers, so results do not depend on batches.
        config: iterations, temperature and filters, form of the gap, threshold, batch.
        seed: root of the random numbers.
        answers: given y0; sampled from the policy where None.
        stop_rule: accept by the gap; otherwise every candidate is kept (the paper's plain iteration).
    """
    for begin in range(0, len(prompts), config.batch):
        piece = slice(begin, begin + config.batch)
        xs, ids = list(prompts[piece]), list(requests[piece])
        if answers is None:
            current = models.respond(xs, ids, config, _pass_seed(seed, 0))
        else:
            current = [list(a) for a in answers[piece]]
        first, steps = current, []
        for number in range(1, config.iterations + 1):
            drawn = models.refine(xs, current, ids, config, _pass_seed(seed, number))
            gaps = models.gap.gap(xs, current, [drawn], config.gap)[:, 0]
            keep = [not stop_rule or bool(gap > config.threshold) for gap in gaps]
            current = [new if ok else old for new, old, ok in zip(drawn, current, keep, strict=True)]
            steps.append([Step(c, float(g), k, a) for c, g, k, a in zip(drawn, gaps, keep, current, strict=True)])
        for row, (x, request) in enumerate(zip(xs, ids, strict=True)):
            yield Trajectory(request, x, first[row], tuple(each[row] for each in steps))


def _pass_seed(seed: int, number: int) -> int:
    return 1_000 * (seed + 1) + number
