"""Sizes of the TPU kernels' blocks and tiles, and the defaults where the caller gives none."""

from dataclasses import dataclass, fields

import numpy as np

from pit_kernels import device, tiles

_LANES = 128
_NAME = "token_logprob"
WIDTHS = (1024, 2304, 3072, 4096, 6144, 8192)
"""Upper ends of the classes of widths D that the table of tiles has rows for."""


@dataclass(frozen=True)
class Tiles:
    """Blocks and tiles, in rows of the batch and in columns of the vocabulary; all multiples of 128.

    rows: rows that stay in VMEM while the vocabulary passes by, forward.
    row_tile: rows of a tile of logits, forward; divides `rows`.
    vocab_tile: vocabulary columns of a tile of logits, forward.
    grad_rows, grad_row_tile, grad_vocab_tile: the same, backward.

    Raises:
      ValueError: if a size is not a positive multiple of 128, or a row tile does not divide its rows.
    """

    rows: int
    row_tile: int
    vocab_tile: int
    grad_rows: int
    grad_row_tile: int
    grad_vocab_tile: int

    def __post_init__(self) -> None:
        for field in fields(self):
            size = getattr(self, field.name)
            if not isinstance(size, int) or size < 1 or size % _LANES:
                raise ValueError(
                    f"{_NAME}: tiles.{field.name} is {size!r}; it must be a positive multiple of {_LANES}, "
                    "the lanes of a register"
                )
        for rows, tile in (("rows", "row_tile"), ("grad_rows", "grad_row_tile")):
            if getattr(self, rows) % getattr(self, tile):
                raise ValueError(
                    f"{_NAME}: tiles.{rows} is {getattr(self, rows)} and tiles.{tile} is {getattr(self, tile)}; "
                    f"the second must divide the first"
                )


def shape_class(width: int, dtype: np.dtype) -> str | None:
    """Return the row of the table of tiles that a width and a dtype belong to; None for a width above all classes.

    Example:
      >>> shape_class(2304, np.dtype(np.float32))
      'float32-2304'
    """
    limit = next((limit for limit in WIDTHS if width <= limit), None)
    return None if limit is None else f"{dtype.name}-{limit}"


def default(width: int, dtype: np.dtype) -> Tiles | None:
    """Return the tiles for the kind of TPU that the program is traced for; None where the table has none."""
    name = shape_class(width, dtype)
    sizes = None if name is None else tiles.load(_NAME, device.kind(), name)
    return None if sizes is None else Tiles(**sizes)
