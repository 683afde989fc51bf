"""The places of an array's elements in a TPU's memory: XLA's tiled layouts, as its HLO text prints them."""

import re
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Int32, Shaped

_SHAPE = re.compile(r"^(\w+)\[([\d,]*)\](?:\{([\d,]*)((?::[^}]*)?)\})?")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "c64": 64, "c128": 128, "token": 0, "opaque": 0}


@dataclass(frozen=True)
class Layout:
    """Shape, element type and placement of an array.

    minor_to_major: dimensions, the one whose neighbours lie next to each other first.
    tiles: the tilings, each of the last dimensions of what the one before leaves.
    space: number of the memory space: 0 HBM, 1 VMEM, 5 host, 6 SMEM.
    """

    dtype: str
    shape: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tiles: tuple[tuple[int, ...], ...]
    space: int

    @property
    def bits(self) -> int:
        """Bits of an element."""
        if self.dtype in _BITS:
            return _BITS[self.dtype]
        digits = re.match(r"(?:bf|f|s|u)(\d+)", self.dtype)
        if digits is None:
            raise ValueError(f"{self.dtype!r} is not an element type of HLO")
        return int(digits.group(1))

    @property
    def bytes(self) -> int:
        """Bytes it takes, the padding of its tiles included."""
        shape = [self.shape[dimension] for dimension in reversed(self.minor_to_major)]
        if self.tiles:
            first = self.tiles[0]
            shape = [1] * (len(first) - len(shape)) + shape
            shape[-len(first) :] = [-(-n // t) * t for n, t in zip(shape[-len(first) :], first, strict=True)]
        return prod(shape) * self.bits // 8


def parse_layout(text: str) -> Layout:
    """Read a shape as HLO prints it.

    Raises:
      ValueError: if it is not the shape of one array.

    Example:
      >>> parse_layout("s8[1,8,8]{2,1,0:T(8,128)(4,1)S(1)}")
      Layout(dtype='s8', shape=(1, 8, 8), minor_to_major=(2, 1, 0), tiles=((8, 128), (4, 1)), space=1)
      >>> parse_layout("bf16[8,100]{1,0:T(8,128)(2,1)}").bytes
      2048
    """
    match = _SHAPE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a shape of HLO; it must look like f32[8,128]{{1,0:T(8,128)}}")
    dtype, sizes, order, rest = match.groups()
    shape = _numbers(sizes)
    minor_to_major = _numbers(order) if order else tuple(reversed(range(len(shape))))
    tiling = re.search(r"T((?:\([\d,*]*\))+)", rest or "")
    tiles = re.findall(r"\(([\d,]+)\)", tiling.group(1)) if tiling else []
    space = re.search(r"S\((\d+)\)", rest or "")
    return Layout(dtype, shape, minor_to_major, tuple(map(_numbers, tiles)), int(space.group(1)) if space else 0)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def words(array: Shaped[np.ndarray, "..."], layout: Layout) -> Int32[np.ndarray, " words"]:
    """Return the 32-bit words that hold an array of 8, 16 or 32-bit elements in a layout; padding is 0.

    Raises:
      ValueError: if the shapes of array and layout differ.

    Example:
      >>> [word] = words(np.array([1, 2, 3, 4], np.int8), parse_layout("s8[4]{0}"))
      >>> hex(word)
      '0x4030201'
    """
    if array.shape != layout.shape:
        raise ValueError(f"the array has shape {array.shape} and its layout {layout.shape}; they must be the same")
    laid = array.transpose(tuple(reversed(layout.minor_to_major))) if array.ndim else array
    for tile in layout.tiles:
        laid = _tiled(laid, tile)
    data = np.ascontiguousarray(laid).tobytes()
    return np.frombuffer(data + bytes(-len(data) % 4), np.int32)


def _tiled(array: Shaped[np.ndarray, "..."], tile: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
    """Split the last dimensions into tiles: [.., n, m] becomes [.., n/a, m/b, a, b]."""
    rank = len(tile)
    array = array.reshape((1,) * max(rank - array.ndim, 0) + array.shape)
    outer, inner = array.shape[: array.ndim - rank], array.shape[array.ndim - rank :]
    padding = [(0, 0)] * len(outer) + [(0, -n % t) for n, t in zip(inner, tile, strict=True)]
    array = np.pad(array, padding)
    counts = [-(-n // t) for n, t in zip(inner, tile, strict=True)]
    array = array.reshape(*outer, *(size for pair in zip(counts, tile, strict=True) for size in pair))
    first = len(outer)
    axes = [*range(first), *range(first, first + 2 * rank, 2), *range(first + 1, first + 2 * rank, 2)]
    return array.transpose(axes)
