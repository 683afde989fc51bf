"""Traffic of a compiled program, per chip: collectives over the network, and what instructions move through memory.

Both are read from the scheduled HLO, loops with their trips. A collective that the compiler overlaps with computation
is one chain of fusions, which all name it; it counts once.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from pit_kernels.microbench.hlo import Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
"""Kinds of collectives."""

_DTYPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?")
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "token": 0}
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_FREE |= {"partition-id", "replica-id", "async-start", "async-update", "async-done", "opt-barrier"}
_NO_CODE = ("AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone")


class Collective(NamedTuple):
    """A collective of a program, on one chip.

    kind: one of `KINDS`. shape: its result as printed, without layouts. nbytes: of the larger of operand and result.
    sent_bytes: bytes that the chip sends, by the ring algorithm. group: chips that take part.
    trips: how often it runs; 1 for each trip of a loop whose number is not known. looped: whether such a loop is
    around it. source: its place in the traced program.
    """

    kind: str
    shape: str
    nbytes: int
    sent_bytes: float
    group: int
    trips: int
    looped: bool
    source: str


def nbytes_of(shape: str, *, hbm: bool = False) -> int:
    """Return the bytes of a printed shape, or of a tuple of shapes.

    Args:
        shape: as HLO prints it.
        hbm: count only the parts that lie in HBM, by their layout.

    Example:
        >>> nbytes_of("(bf16[2,3]{1,0:T(8,128)S(1)}, f32[4])"), nbytes_of("bf16[2,3]{1,0:S(1)}", hbm=True)
        (28, 0)
    """
    total = 0
    for dtype, sizes, layout in _DTYPE.findall(shape):
        if hbm and re.search(r"S\([1-9]", layout):
            continue
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(digits.group()) if digits else 0)
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits // 8
    return total


def collectives(module: Module, chips: int) -> list[Collective]:
    """Return the collectives of a program.

    Args:
        module: its scheduled HLO.
        chips: devices that it runs on.
    """
    found, chains = [], set[tuple[str | None, ...]]()
    for instruction, loops in module.walk():
        for inner in _collectives_in(module, instruction):
            chain = _chain(inner)
            if chain is not None and (*loops, *chain) in chains:
                continue
            if chain is not None:
                chains.add((*loops, *chain))
            found.append(_collective(module, instruction, inner, loops, chips))
    return found


def _collectives_in(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """Yield the collective that an instruction is, or those in its fusion."""
    inside = [instruction]
    if instruction.opcode == "fusion":
        inside = module.computations.get(instruction.called("calls") or "", [])
    for inner in inside:
        if inner.opcode.removesuffix("-start") in KINDS:
            yield inner


def _chain(inner: Instruction) -> tuple[str, str] | None:
    """Return what names a collective that is spread over several fusions; None for any other one."""
    chain = re.search(r'chain_id="(\d+)"', inner.rest)
    channel = re.search(r"channel_id=(\d+)", inner.rest)
    return None if chain is None else (chain.group(1), channel.group(1) if channel else "")


def _collective(
    module: Module, outer: Instruction, inner: Instruction, loops: tuple[str, ...], chips: int
) -> Collective:
    kind, group = inner.opcode.removesuffix("-start"), _group(inner.rest, chips)
    size = nbytes_of(inner.shape)
    if inner.opcode.endswith("-start"):
        # The shape of a start has the operands and the results.
        size = {"all-gather": size * group // (group + 1), "all-reduce": size}.get(kind, size // 2)
    if kind == "all-reduce" and _is_scattered(module, outer):
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        size *= group
    share = (group - 1) / group
    sent = {"all-reduce": 2 * size * share, "collective-permute": float(size)}.get(kind, size * share)
    counts = _trips(module, loops)
    source = re.search(r'op_name="([^"]*)"', inner.rest)
    shape = re.sub(r"\{[^}]*\}|/\*.*?\*/", "", inner.shape)
    trips = math.prod(1 if count is None else count for count in counts)
    return Collective(kind, shape, size, sent, group, trips, None in counts, source.group(1) if source else "")


def _is_scattered(module: Module, outer: Instruction) -> bool:
    """Return whether a fusion keeps of an all-reduce only this chip's part: on TPUs it is a reduce-scatter."""
    if outer.opcode != "fusion":
        return False
    inside = module.computations.get(outer.called("calls") or "", [])
    return any(inner.opcode == "dynamic-slice" for inner in inside)


def _group(rest: str, chips: int) -> int:
    """Return the number of chips in a group of a collective.

    >>> _group("replica_groups=[4,8]<=[32]", 32), _group("replica_groups={{0,1},{2,3}}", 4)
    (8, 2)
    >>> _group("replica_groups=mesh['a'=4,'b'=2] {'b'}, dimensions={0}", 8), _group("replica_groups={}", 8)
    (2, 8)
    """
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(tiled.group(2))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
        return math.prod(
            int(part) if part else sizes[axis]
            for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named.group(2))
        )
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed.group(1).split(","))
    if "source_target_pairs=" in rest:
        return 2
    return chips


def hbm_bytes(module: Module, loop_steps: int = 1) -> float:
    """Return the bytes that the instructions of a program read from HBM and write to it, on one chip.

    Each operand counts once per instruction. Of an operand that an instruction slices, the slices count; of a result
    that is an update in place, the update.

    Args:
        module: its scheduled HLO.
        loop_steps: trips of the outermost loops without a known number; such loops inside them may not run at all.
    """
    total = 0.0
    for instruction, loops in module.walk():
        counts = _trips(module, loops)
        unknown = {0: 1, 1: loop_steps}.get(counts.count(None), 0)
        total += _moved(module, instruction) * unknown * math.prod(count for count in counts if count is not None)
    return total


def _trips(module: Module, loops: tuple[str, ...]) -> list[int | None]:
    """Return the trips of the loops among the loops and conditionals around an instruction."""
    around = (module.by_name[name] for name in loops)
    return [module.trips(each) for each in around if each.opcode == "while"]


def _moved(module: Module, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    if opcode == "custom-call" and any(f'custom_call_target="{name}"' in instruction.rest for name in _NO_CODE):
        return 0
    operands = [module.by_name[name] for name in instruction.operands if name in module.by_name]
    if opcode == "fusion":
        return _moved_by_fusion(module, instruction, operands)
    written = nbytes_of(instruction.shape, hbm=True)
    if opcode == "copy-start":
        target = re.match(r"\(?([a-z]\w*\[[\d,]*\](?:\{[^}]*\})?)", instruction.shape)
        written = nbytes_of(target.group(1), hbm=True) if target else 0
    elif opcode == "dynamic-update-slice":
        return 2 * nbytes_of(operands[1].shape, hbm=True)
    elif opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    return written + sum(nbytes_of(each.shape, hbm=True) for each in operands)


_SLICES = ("dynamic-slice", "slice", "gather")


def _moved_by_fusion(module: Module, fusion: Instruction, operands: list[Instruction]) -> int:
    inside = module.computations.get(fusion.called("calls") or "", [])
    named = {inner.name: inner for inner in inside}
    total = 0
    for number, parameter in enumerate(_parameters(inside)[: len(operands)]):
        size = nbytes_of(operands[number].shape, hbm=True)
        uses = [inner for inner in inside if parameter in inner.operands]
        if uses and all(inner.opcode in _SLICES and inner.operands[0] == parameter for inner in uses):
            size = min(size, sum(nbytes_of(inner.shape) for inner in uses))
        elif uses and all(inner.opcode == "dynamic-update-slice" and inner.operands[0] == parameter for inner in uses):
            size = 0
        total += size
    updates = [inner for inner in inside if inner.opcode == "dynamic-update-slice"]
    written = nbytes_of(fusion.shape, hbm=True)
    for update in updates:
        whole, part = nbytes_of(update.shape), nbytes_of(named[update.operands[1]].shape)
        written -= min(written, whole - part)
    return total + written


def _parameters(inside: list[Instruction]) -> list[str]:
    """Return the names of a computation's parameters in order."""
    numbered = {}
    for inner in inside:
        if inner.opcode == "parameter":
            numbered[int(inner.literal or 0)] = inner.name
    return [numbered[number] for number in sorted(numbered)]
