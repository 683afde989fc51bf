"""Sizes of the TPU kernels' blocks, and the defaults where the caller gives none."""

from dataclasses import dataclass

import numpy as np

from pit_kernels import device
from pit_kernels import tiles as table

_NAME = "gap_reward"
_LANES = 128
WIDTHS = (1024, 2304, 4096, 8192)
"""Upper ends of the classes of widths D that the table of tiles has rows for."""


@dataclass(frozen=True)
class Tiles:
    """Sizes of the TPU kernels' blocks.

    block: leaves of a grid step; their scores fill the lanes of registers, so it is a multiple of 128.
    group: leaves that are fetched and computed on at once: a multiple of 16, the rows of a bfloat16 tile, and a power
      of two, so that it divides the block.
    tokens: tokens of a block of gradients that is written at once, a multiple of 16.

    Raises:
      ValueError: if a size is outside its range.
    """

    block: int = 128
    group: int = 16
    tokens: int = 256

    def __post_init__(self) -> None:
        if self.block < _LANES or self.block % _LANES:
            raise ValueError(
                f"{_NAME}: tiles.block is {self.block}; it must be a positive multiple of {_LANES}, the lanes of a "
                "register"
            )
        if self.group not in (16, 32, 64, 128):
            raise ValueError(f"{_NAME}: tiles.group is {self.group}; it must be 16, 32, 64 or 128")
        if self.tokens < 16 or self.tokens % 16:
            raise ValueError(f"{_NAME}: tiles.tokens is {self.tokens}; it must be a positive multiple of 16")


def shape_class(width: int, dtype: np.dtype) -> str:
    """Return the row of the table of tiles that a width and a dtype belong to.

    Example:
      >>> shape_class(2304, np.dtype(np.float32))
      'float32-2304'
    """
    return f"{dtype.name}-{next((limit for limit in WIDTHS if width <= limit), WIDTHS[-1])}"


def default_tiles(width: int, dtype: np.dtype) -> Tiles:
    """Return the tiles for the kind of TPU that the program is traced for, from the table or the class's defaults."""
    return Tiles(**(table.load(_NAME, device.kind(), shape_class(width, dtype)) or {}))
