"""Static settings of a call, the same for every backend."""

from typing import NamedTuple

from pit_kernels import dispatch
from pit_kernels.partition import Partition


class Settings(NamedTuple):
    """What does not change from call to call.

    slots_per_prefix: most slots that share a prefix.
    route: the backends that run.
    partition: mesh axes that split heads.
    interpret: whether, and how, Pallas' interpreter runs the TPU kernels.
    """

    scale: float
    logit_soft_cap: float | None
    slots_per_prefix: int
    route: dispatch.Route
    partition: Partition
    interpret: dispatch.Interpret
