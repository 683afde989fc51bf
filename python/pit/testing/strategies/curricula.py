"""Valid curricula of an RL stage: strategies, the handover between sources, lags and bands.

Every drawn section passes the validation of `pit.config.CurriculumConfig`.
"""

from typing import Literal

from hypothesis import strategies as st

from pit.config import CurriculumConfig, SourceWeights
from pit.testing.strategies.tokens import DrawFn

_STRATEGIES: tuple[Literal["uniform", "staged", "learnability", "gap_band"], ...] = (
    "uniform",
    "staged",
    "learnability",
    "gap_band",
)


@st.composite
def curricula(draw: DrawFn, most_examples: int = 64) -> CurriculumConfig:
    """Draw valid curriculum sections, including the default one.

    Args:
        draw: Hypothesis's own argument; callers leave it out.
        most_examples: upper bound of the field `examples`, which may also be None.

    >>> from hypothesis import find
    >>> find(curricula(), lambda config: config.strategy == "uniform").examples is None
    True
    """
    examples = draw(st.none() | st.integers(1, most_examples))
    strategy = draw(st.sampled_from(_STRATEGIES))
    if strategy == "uniform":
        return CurriculumConfig(examples=examples)
    if strategy == "staged":
        weights = draw(st.tuples(*[st.integers(0, 3)] * 3).filter(any))
        begin, steps = draw(st.integers(0, 20)), draw(st.integers(0, 20))
        return CurriculumConfig(
            strategy="staged",
            sources_after=SourceWeights(*weights),
            handover_step=begin,
            handover_steps=steps,
            examples=examples,
        )
    lag = draw(st.integers(1, 4))
    rank = st.sampled_from((0.0, 0.2, 0.5, 0.8, 1.0))
    return CurriculumConfig(
        strategy=strategy,
        examples=examples,
        difficulty=draw(st.sampled_from(("none", "length", "edit"))),
        lag=lag,
        prefetch=draw(st.integers(0, lag - 1)),
        memory=draw(st.integers(2, 64)),
        band_start=draw(rank),
        band_end=draw(rank),
    )
