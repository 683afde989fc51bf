"""Sweeps the tiles of an operation and keeps the best of each kind of device and class of shapes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pit_kernels.microbench.static import analyse

TILES_FILE = Path(__file__).parents[1] / "tiles.json"
"""Where the best tiles are kept: operation, kind of device, class of shapes."""

Tiles = TypeVar("Tiles")
Build = Callable[[Tiles], tuple[Callable[..., Any], Sequence[Any]]]
"""Gives the function to call with such tiles, and its arguments."""


@dataclass(frozen=True)
class Tuned(Generic[Tiles]):
    """The outcome of a sweep.

    best: the tiles that take the least time.
    us: estimate of every candidate in their order; None where it cannot be compiled or counted.
    why: the reason for each None.
    """

    best: Tiles
    us: list[float | None]
    why: list[str]


def static_us(function: Callable[..., Any], arguments: Sequence[Any], target: str) -> float:
    """Estimated microseconds of one call; the default clock of `tune`.

    Raises:
      ValueError: if the cost is not known in full.
    """
    static = analyse(function, arguments, target)
    if not static.complete:
        raise ValueError("; ".join(static.notes))
    return static.us


def tune(
    candidates: Sequence[Tiles],
    build: Build[Tiles],
    target: str,
    *,
    clock: Callable[[Callable[..., Any], Sequence[Any], str], float] = static_us,
) -> Tuned[Tiles]:
    """Tries every candidate and names the best.

    Args:
      candidates: tile dataclasses of the operation.
      build: gives the function and its arguments for tiles.
      target: kind of device.
      clock: microseconds of one call; counted statically by default, timed where there is hardware.

    Raises:
      ValueError: if no candidate works; the message gives the first reason.
    """
    us: list[float | None] = []
    why = []
    for tiles in candidates:
        # What a compiler refuses (no room in VMEM) is a candidate less, whatever it raises.
        try:
            us.append(clock(*build(tiles), target))
        except Exception as error:
            us.append(None)
            why.append(f"{tiles}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}")
    known = [(time, number) for number, time in enumerate(us) if time is not None]
    if not known:
        raise ValueError(
            f"none of {len(candidates)} candidates works for {target}: {why[0] if why else 'there is none'}"
        )
    return Tuned(candidates[min(known)[1]], us, why)


def keep(operation: str, target: str, shape_class: str, tuned: Tuned[Any], path: Path = TILES_FILE) -> None:
    """Writes the best tiles, in place of those kept before for the same operation, device and shapes."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found.setdefault(operation, {}).setdefault(target, {})[shape_class] = asdict(tuned.best)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def kept(operation: str, target: str, shape_class: str, path: Path = TILES_FILE) -> dict[str, int] | None:
    """The tiles kept for an operation, or None where there are none."""
    if not path.exists():
        return None
    found: dict[str, int] | None = (
        json.loads(path.read_text(encoding="utf-8")).get(operation, {}).get(target, {}).get(shape_class)
    )
    return found
