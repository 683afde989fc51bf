"""The time of attention kernels for one tile of 512 queries x 512 keys at a head width of 128.

A hot piece may hold a part of a tile, one or several. The number follows from the work that any kernel must do for a
tile, in units that the compiler counts: forward the passes of the matrix units for two products, backward the
exponentials, one per pair of query and key (backward products may be arranged so that they fill the matrix units better
or worse).
"""

from dataclasses import dataclass

from pit_kernels.microbench.static import Hot, Kernel

MATRIX_CYCLES = {"v4": 1024, "v5e": 1024, "v5p": 1024, "v6e": 512, "v7x": 512}
"""Cycles in which all matrix units of a core make the two forward products of a tile. On v6e half of each unit's 256 x
256 cells is idle at a width of 128."""

EXPONENTIALS = {"v4": 512, "v5e": 256, "v5p": 256, "v6e": 256, "v7x": 256}
"""Operations that the exponentials of all pairs of a tile take: one for a register of 1,024 numbers, two on v4."""

STEP = 0.25
"""Hot pieces are taken to hold whole quarters of a tile: a quarter is 256 x 256."""

SLACK = 0.04
"""How far the count of work may lie from a whole number of quarters, as a share of it."""


@dataclass(frozen=True)
class HotTile:
    """The cost of a tile.

    bundles: cycles per tile, of all kernels of the direction together.
    tiles: tiles that one pass of each kernel's hot piece makes.
    """

    bundles: float
    tiles: tuple[float, ...]


def hot_tile(kernels: list[Kernel], direction: str, target: str) -> HotTile | None:
    """Return the cycles of a tile, from kernels in program order; the first is the forward one.

    Args:
      kernels: kernels of a program, XLA's included.
      direction: "forward", or "both" for the backward kernels alone.
      target: generation of TPU.

    Returns:
      None where no kernel of the direction has a hot piece with a whole number of quarters of a tile in it.
    """
    pallas = [kernel for kernel in kernels if kernel.opcode == "custom-call" and _share(kernel.hot, "MXU")]
    chosen = pallas[:1] if direction == "forward" else pallas[1:]
    counts = [] if direction == "forward" and len(pallas) != 1 else [tiles_of(k.hot, direction, target) for k in chosen]
    known = [tiles for tiles in counts if tiles is not None]
    if not known or len(known) < len(chosen):
        return None
    bundles = sum(k.hot.bundles / tiles for k, tiles in zip(chosen, known, strict=True) if k.hot is not None)
    return HotTile(round(bundles, 1), tuple(known))


def tiles_of(hot: Hot | None, direction: str, target: str) -> float | None:
    """Return the tiles in a hot piece; None where its work is not a whole number of quarters."""
    if hot is None:
        return None
    if direction == "forward":
        work = hot.bundles * _share(hot, "MXU") / MATRIX_CYCLES[target]
    else:
        work = hot.bundles * _share(hot, "EUP") / EXPONENTIALS[target]
    tiles = round(work / STEP) * STEP
    return tiles if tiles and abs(work / tiles - 1) <= SLACK else None


def _share(hot: Hot | None, unit: str) -> float:
    return 0.0 if hot is None else hot.use.get(unit, 0.0)
