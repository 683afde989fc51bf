"""Static settings of a call, the same for every backend."""

from typing import NamedTuple

from pit_kernels import dispatch


class Settings(NamedTuple):
    """What does not change from call to call.

    slots_per_prefix: most slots that share a prefix.
    interpret: whether, and how, Pallas' interpreter runs the TPU kernels.
    """

    scale: float
    logit_soft_cap: float | None
    slots_per_prefix: int
    interpret: dispatch.Interpret
