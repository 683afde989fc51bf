"""The number of keys of a row that fit into VMEM at once, and of their lists into SMEM."""

from typing import NamedTuple

from pit_kernels import device
from pit_kernels.three_way_attention.tiles import Tiles
from pit_kernels.three_way_attention.visible_blocks import KEYS

_STACK = {2: 8, 4: 36}
"""Bytes of VMEM that the backward kernel's intermediate values take for each logit of its largest tile, by the bytes of
a number, as measured with the compiler. Products of float32 keep parts of their operands."""

_LISTS = 2**20 * 3 // 4
"""Bytes of SMEM (1 MiB on every generation) that the lists of blocks may take."""


def padded_tokens(tokens: int, queries: int = KEYS) -> int:
    """Return the tokens of a row inside: whole blocks of `queries`, a multiple of 128."""
    return max(-(-tokens // queries), 1) * queries


def padded_width(width: int) -> int:
    """Return the width of a head inside: 64, or whole registers of 128 lanes."""
    return 64 if width <= 64 else -(-width // KEYS) * KEYS


class Rows(NamedTuple):
    """Sizes that VMEM depends on.

    group: query heads per key/value head.
    width: of a head inside.
    itemsize: bytes of a number.
    tiles: block sizes.
    windowed: whether the call has a sliding window.
    """

    group: int
    width: int
    itemsize: int
    tiles: Tiles
    windowed: bool = False


def backward_bytes(rows: Rows, keys: int, *, buffers: int, stretch: bool) -> int:
    """Return VMEM of the backward kernel, which needs more than the forward one.

    Args:
      rows: the call.
      keys: keys that lie in VMEM.
      buffers: buffers of keys, values and their gradients, 1 or 2.
      stretch: whether the keys are only a stretch of the row.
    """
    lanes, number = max(rows.width, KEYS), rows.itemsize
    resident = 4 * buffers * keys * lanes * number + 2 * keys * lanes * 4 + keys * lanes * number
    # Columns of `visible_until`, and of last positions.
    marks = (keys + KEYS) * KEYS * 4 * (2 if rows.windowed else 1) + (0 if stretch else keys * KEYS * number)
    stacked = rows.group * rows.tiles.queries
    # Two windows of q, of its gradient and of that of the output, and the sum of the former.
    of_queries = stacked * lanes * (4 * number + (8 if stretch else 2 * number) + 4)
    widest = max(rows.tiles.keys, rows.tiles.short * KEYS + (0 if stretch else rows.tiles.queries))
    return resident + marks + of_queries + stacked * widest * _STACK[number]


def stretches(tokens: int, rows: Rows) -> tuple[int, int] | None:
    """Cut the keys of a row into the fewest equal stretches that fit; None where not even a block of queries fits.

    Args:
      tokens: length of a row.
      rows: the call; its `tiles.resident` bounds a stretch from above.

    Returns:
      Number of stretches and tokens of each, a multiple of the block of queries.
    """
    tiles = rows.tiles
    blocks = padded_tokens(tokens, tiles.queries) // tiles.queries
    room = padded_tokens(tokens if tiles.resident is None else tiles.resident, tiles.queries)
    for number in range(1, blocks + 1):
        keys = -(-blocks // number) * tiles.queries
        lists = blocks * (keys + tiles.keys) // KEYS * 4 * 2
        vmem = backward_bytes(rows, keys, buffers=1, stretch=number > 1)
        if keys <= room and lists <= _LISTS and vmem <= device.vmem_bytes():
            return -(-blocks * tiles.queries // keys), keys
    return None
