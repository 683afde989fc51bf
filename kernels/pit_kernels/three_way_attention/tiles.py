"""Block sizes of the TPU kernels, which change results by rounding only."""

from dataclasses import dataclass, replace

from pit_kernels import device
from pit_kernels import tiles as table
from pit_kernels.three_way_attention.visible_blocks import KEYS

WIDEST = 6
"""Blocks of 128 keys of the widest tile without a loop."""

ROWS = 512
"""Query rows (tokens times the heads of a group) of a block where the table has no entry."""


@dataclass(frozen=True)
class Tiles:
    """Block sizes.

    queries: tokens of a block of queries; the heads of a group are stacked, so a block has group times as many rows.
    keys: tokens of keys that one step of a loop takes, gathered from blocks of 128.
    unroll: steps over wholly visible keys that one trip of a loop makes, so that the products of one overlap the
      exponentials of the other.
    masked: the same number for steps over partly visible keys; a step that is left over takes a trip of its own.
    short: most blocks of 128 keys before the diagonal that are served without a loop; 0 always loops.
    resident: most tokens of keys that lie in VMEM at a time, whole blocks of queries; None for as many as fit. Longer
      rows are cut into stretches.

    Raises:
      ValueError: if a size is outside its range.
    """

    queries: int = 128
    keys: int = 512
    unroll: int = 3
    masked: int = 2
    short: int = 5
    resident: int | None = None

    def __post_init__(self) -> None:
        for name, multiple in (("queries", KEYS), ("keys", KEYS), ("unroll", 1), ("masked", 1), ("resident", KEYS)):
            value = getattr(self, name)
            if value is not None and (value < multiple or value % multiple):
                raise ValueError(
                    f"three_way_attention: tiles.{name} is {value}; it must be a positive multiple of {multiple}"
                )
        if self.queries & (self.queries - 1):
            raise ValueError(f"three_way_attention: tiles.queries is {self.queries}; it must be a power of two")
        if self.short < 0:
            raise ValueError(f"three_way_attention: tiles.short is {self.short}; it must not be negative")


def shape_class(group: int, width: int, itemsize: int) -> str:
    """Return the name of a shape in the table of tiles: heads per key/value head, width, bytes per number.

    Example:
      >>> shape_class(4, 128, 2)
      'r4-h128-b2'
    """
    return f"r{group}-h{width}-b{itemsize}"


def default_tiles(tokens: int, group: int, width: int, itemsize: int) -> Tiles:
    """Return the tiles for a shape: the table's entry for the kind of TPU, else blocks of about 512 rows.

    Args:
      tokens: length of a row, a multiple of 128; blocks of queries divide it.
      group: query heads per key/value head.
      width: width of a head.
      itemsize: bytes of a number.
    """
    entry = table.load("three_way_attention", device.kind(), shape_class(group, width, itemsize))
    if entry:
        tiles = Tiles(**entry)
    else:
        # Where VMEM is small, a tile's float32 logits must be.
        v4 = device.kind() == "v4"
        small = v4 and (group > 1 or width > KEYS)
        queries = _power_of_two((ROWS // 2 if v4 and (group == 1 or width > KEYS) else ROWS) // group)
        widest = WIDEST // 2 if small else WIDEST
        # Where heads share no mask, more of a masked tile is vector work, and more tiles per trip hide it.
        keys, unroll, masked = (2 * KEYS, 1, 1) if small else (4 * KEYS, 3, 3 if group == 1 else 2)
        tiles = Tiles(queries, keys, unroll, masked, short=max(widest - queries // KEYS, 0))
    queries = tiles.queries
    while tokens % queries:
        queries //= 2
    return replace(tiles, queries=queries)


def _power_of_two(rows: int) -> int:
    queries = KEYS
    while 2 * queries <= rows:
        queries *= 2
    return queries
