"""Static settings of cached attention, the same for every backend."""

from typing import NamedTuple

from pit_kernels.dispatch import Interpret
from pit_kernels.partition import Partition


class Settings(NamedTuple):
    """Static settings of a call.

    scale, logit_soft_cap: as in `api.cached_attention`.
    window: last entries of prefix and suffix together that a slot sees; None for all.
    slots_per_prefix: most slots that share a prefix.
    partition: mesh axes that split heads.
    interpret: False, or the parameters of the interpreter.
    """

    scale: float
    logit_soft_cap: float | None
    window: int | None
    slots_per_prefix: int
    partition: Partition
    interpret: Interpret
