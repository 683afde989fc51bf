"""What is fixed when an attention program is traced."""

from typing import NamedTuple

from pit_kernels.dispatch import Interpret, Route
from pit_kernels.partition import Partition
from pit_kernels.three_way_attention.tiles import Tiles


class Settings(NamedTuple):
    """Static settings: logits = soft_cap(scale * q.k) with soft_cap(z) = c tanh(z / c), z where c is None.

    scale, logit_soft_cap: see above.
    route: the backends.
    tiles: block sizes of the TPU kernels.
    interpret: False, or the interpreter's parameters.
    partition: mesh axes that split rows and heads.
    """

    scale: float
    logit_soft_cap: float | None
    route: Route
    tiles: Tiles
    interpret: Interpret
    partition: Partition
