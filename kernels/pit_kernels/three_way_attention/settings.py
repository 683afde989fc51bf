"""Static settings of three-way attention, the same for every backend."""

from typing import NamedTuple

from pit_kernels.dispatch import Interpret
from pit_kernels.partition import Partition
from pit_kernels.three_way_attention.tiles import Tiles


class Settings(NamedTuple):
    """Static settings: logits = soft_cap(scale * q.k) with soft_cap(z) = c tanh(z / c), z where c is None.

    scale, logit_soft_cap: see above.
    window: positions of its path that a query sees, its own included; None for all.
    tiles: block sizes of the TPU kernels; None for those of the committed table.
    interpret: False, or the parameters of the interpreter.
    partition: mesh axes that split rows and heads.
    """

    scale: float
    logit_soft_cap: float | None
    window: int | None
    tiles: Tiles | None
    interpret: Interpret
    partition: Partition
