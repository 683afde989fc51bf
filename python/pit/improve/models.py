"""The models of an improvement, loaded from a finished run, and how they sample."""

from collections.abc import Sequence
from dataclasses import dataclass

from pit.config import ImproveConfig, PackingConfig
from pit.data.tokens import Tokens
from pit.improve.calibration import Calibration
from pit.improve.record import read_searched
from pit.model.decoder import Decoder
from pit.model.model import Model
from pit.rollout.protocol import GapScorer, QualityScorer, SamplerProtocol
from pit.rollout.score import LikelihoodScorer, ModelScorer
from pit.rollout.strategy import Strategy, sampling
from pit.run.folder import Run
from pit.run.stage import Stage
from pit.seeds import Seed
from pit.stages import refresh, rl, sft
from pit.stages.graph import improver_of


@dataclass(frozen=True)
class Models:
    """Models of an improvement: the policy that answers, the improver, and the scorer whose gap accepts.

    The policy is None where all answers are given.

    quality: R_P, None where no choice asks for it.
    calibration: the probability of being better, None where the threshold of the gap accepts.
    """

    policy: Model[Decoder] | None
    improver: Model[Decoder]
    scorer: GapScorer
    sampler: SamplerProtocol
    quality: QualityScorer | None = None
    calibration: Calibration | None = None

    @classmethod
    def load(
        cls,
        run: Run,
        packing: PackingConfig,
        policy: Stage | None = rl.POLICY,
        improver: Stage | None = None,
        config: ImproveConfig | None = None,
    ) -> "Models":
        """Load the finished models of a run.

        Args:
            run: the run.
            packing: shape of the rows that the gap's scorer reads.
            policy: stage that answers; None where all answers are given.
            improver: stage that improves; the last RL stage of the improver if not given.
            config: the search that will use them; the run's own if not given.

        Raises:
            ConfigError: answers are to be accepted by a calibration, and `pit search` has fitted none to these models.
        """
        config = config or run.config.improve
        layout = run.layout(packing)
        scorer: GapScorer
        if config.accept_by == "likelihood":
            scorer = LikelihoodScorer(sft.IMPROVER.load(run), layout)
        else:
            scorer = ModelScorer(refresh.last_gap(run.config).load(run), layout)
        quality = None
        if config.weighs_quality:
            stage = refresh.last_quality(run.config)
            quality = ModelScorer(stage.load(run), run.layout(stage.settings(run.config).packing))
        improver = improver or improver_of(run.config)
        answering = None if policy is None else policy.load(run)
        sampler = run.sampler(config.rollout)
        calibrated = config.accept == "calibrated"
        calibration = read_searched(run, config, "improve.accept = calibrated").calibration if calibrated else None
        return cls(answering, improver.load(run), scorer, sampler, quality, calibration)

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
        self, prompts: Tokens, answers: Tokens, requests: Sequence[int], config: ImproveConfig, seed: Seed, *number: int
    ) -> Tokens:
        """Return the improver's candidate for each prompt and answer, in a pass: its number, and what else names it."""
        return self.sampler.answers(
            self.improver,
            requests,
            prompts,
            answers,
            strategy=strategy_of(config),
            seed=seed.of("pass", *number).number,
        )


def strategy_of(config: ImproveConfig) -> Strategy:
    """Return the sampling strategy of a config."""
    return sampling(config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
