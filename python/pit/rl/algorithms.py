"""The algorithms that `algorithm` of an RL stage's config can name."""

from collections.abc import Callable

from flax import nnx

from pit.config import FieldError, RlConfig
from pit.model.decoder import Decoder
from pit.rl.algorithm import Algorithm
from pit.rl.clipped import Clipped
from pit.rl.rloo import Rloo

MakeAlgorithm = Callable[[nnx.GraphDef[Decoder], RlConfig, int], Algorithm]
"""Makes the algorithm of a policy, for a section and samples of at most so many tokens."""

ALGORITHMS: tuple[type[Algorithm], ...] = (Rloo, Clipped)


def algorithm_of(config: RlConfig, section: str) -> MakeAlgorithm:
    """Return the algorithm that a section names.

    Raises:
        FieldError: there is none of that name, or it does not do what the section asks for.
    """
    by_name = {algorithm.name: algorithm for algorithm in ALGORITHMS}
    if config.algorithm not in by_name:
        rule = f"must be one of {', '.join(by_name)}"
        raise FieldError(f"{section}.algorithm", config.algorithm, rule, f"set {{path}}={next(iter(by_name))}")
    try:
        by_name[config.algorithm].check(config)
    except FieldError as error:
        raise error.inside(f"{section}.") from None
    return by_name[config.algorithm]
