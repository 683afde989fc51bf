"""Account of a compiled program, per chip: memory, collectives, operations, and the least time that they take."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import jax

from pit.plan.flops import flops
from pit.plan.traffic import Collective, collectives, hbm_bytes
from pit_kernels.microbench.generations import Generation
from pit_kernels.microbench.hlo import parse_module

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Account:
    """Account of a program, per chip.

    arguments, outputs, aliased, temporaries, code: bytes of memory; `aliased` are outputs that lie in arguments.
    flops, hbm_bytes: operations, and bytes moved between memory and core.
    collectives: what crosses the network.
    seconds: time that compiling took.
    refused: bytes that the compiler asked for where the program does not fit a chip; its other figures are then 0.
    """

    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    seconds: float = 0.0
    refused: int = 0

    @property
    def peak(self) -> int:
        """Bytes while the program runs, without its code."""
        return self.refused or self.arguments + self.outputs - self.aliased + self.temporaries

    @property
    def sent_bytes(self) -> float:
        """Bytes that a chip sends."""
        return sum((each.sent_bytes * each.trips for each in self.collectives), 0.0)

    def by_kind(self) -> dict[str, float]:
        """Return the bytes of collectives by kind, all trips together."""
        totals: dict[str, float] = defaultdict(float)
        for each in self.collectives:
            totals[each.kind] += each.nbytes * each.trips
        return dict(sorted(totals.items()))

    def floor(self, generation: Generation) -> tuple[float, str]:
        """Return the least time that the program takes, in seconds, and what bounds it."""
        times = {
            "compute": self.flops / generation.peak_flops,
            "memory": self.hbm_bytes / generation.hbm_bytes_per_s,
            "network": self.sent_bytes / generation.network_bytes_per_s,
        }
        bound = max(times, key=lambda name: times[name])
        return times[bound], bound


def account(traced: Any, compiled: Any, *, chips: int, loop_steps: int, seconds: float) -> Account:
    """Return the account of a program.

    Args:
        traced: the traced program.
        compiled: the same compiled for TPUs.
        chips: devices that it runs on.
        loop_steps: trips of loops whose number depends on data.
        seconds: time that compiling took.
    """
    memory, module = compiled.memory_analysis(), parse_module(compiled.as_text())
    found = [
        each._replace(trips=each.trips * loop_steps) if each.looped else each for each in collectives(module, chips)
    ]
    return Account(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=flops(traced.jaxpr, loop_steps=loop_steps) / chips,
        hbm_bytes=hbm_bytes(module, loop_steps),
        collectives=found,
        seconds=seconds,
    )


def refused(error: Exception) -> int | None:
    """Return the bytes that the compiler asked for, if an error says that a program does not fit a chip's memory.

    >>> text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    >>> refused(RuntimeError(text)) == int(20.5 * 2**30)
    True
    """
    text = str(error)
    match = re.search(r"Used ([\d.]+)([KMGT]?) of|\(([\d.]+)([KMGT]?)\) exceeds available HBM", text)
    if "RESOURCE_EXHAUSTED" not in text or match is None:
        return None
    number, unit = match.group(1, 2) if match.group(1) else match.group(3, 4)
    return int(float(number) * _UNITS[unit])


def bytes_on_chip(x: jax.ShapeDtypeStruct) -> int:
    """Return the bytes of an array on each chip that holds a part of it."""
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    size: int = math.prod(shape) * x.dtype.itemsize
    return size
