"""Reads the TPU compiler's dumps of one kernel: its VLIW bundles after register allocation and their slot use.

A dump is what libtpu writes with --xla_jf_dump_llo_text: `...-packed-bundles-post-ra.txt` has one line per bundle,
stalls included, `...-pre-delay_hlo-static-per-bundle-utilization.txt` the units that every bundle keeps busy.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

_COMMENT_EDGE = re.compile(r"/\*|\*/")
_MEANT = ("kRem", "kDiv", "core id")
_LINE = re.compile(r"^ *(0x[0-9a-f]+|0) +([A-Z]{2})? *: *([> ]*)\{(.*)\}\s*$", re.MULTILINE)
_PREDICATE = re.compile(r"\((!?)%(p\d+(?:_p\d+)?)(?:, ([^()]+))?\),?")
_OPERATION = re.compile(r"^(?:%(\w+) = )?([a-z][a-z0-9_.\-]*)\s*(.*)$", re.DOTALL)


class DumpError(ValueError):
    """A dump that this package cannot read; the message names the part of the file and its text."""


@dataclass(frozen=True)
class Operation:
    """One operation of a bundle.

    result: name of the value it defines, or None.
    opcode: as printed, with its type suffixes.
    predicate: name of the predicate it runs under, or None; `negated` when it runs where that is false.
    otherwise: where given, the value the result keeps when the predicate does not hold.
    operands: the rest of the text.
    """

    result: str | None
    opcode: str
    predicate: str | None
    negated: bool
    otherwise: str | None
    operands: str


@dataclass(frozen=True)
class Bundle:
    """One cycle's operations. depth counts the loops around it; tag is LB, PF, ... where the dump marks one."""

    tag: str | None
    depth: int
    operations: tuple[Operation, ...]


def parse_bundles(text: str) -> list[Bundle]:
    """Return the bundles of a dump, in order of their addresses.

    Raises:
      DumpError: if the addresses do not count up from 0, or an operation is not one.

    Example:
      >>> [bundle] = parse_bundles("   0   :  { %s1_s0 = smov 4  ;;  %2 = sst [smem:[#allocation0]] %s1_s0 }")
      >>> [operation.opcode for operation in bundle.operations]
      ['smov', 'sst']
    """
    bundles = []
    for number, match in enumerate(_LINE.finditer(_without_comments(text))):
        address, tag, depth, body = match.groups()
        if int(address, 16) != number:
            raise DumpError(f"bundle {number} of the dump has address {address}; they must count up from 0")
        parts = (part.strip() for part in body.split(" ;; "))
        bundles.append(Bundle(tag, depth.count(">"), tuple(_operation(part) for part in parts if part)))
    if not bundles:
        raise DumpError("the dump has no bundle; it must be a packed-bundles-post-ra.txt of libtpu")
    return bundles


def _without_comments(text: str) -> str:
    """Return the text without its comments, which nest; those of divisions and loads stay, as they name operands."""
    pieces, depth, begin = [], 0, 0
    for edge in _COMMENT_EDGE.finditer(text):
        opens = edge.group() == "/*"
        if depth == 0 and opens:
            pieces.append(text[begin : edge.start()])
        elif depth == 1 and not opens:
            word = text[begin : edge.start()].strip()
            pieces.append(f" {word} " if word in _MEANT else "")
        depth = max(depth + (1 if opens else -1), 0)
        if depth <= 1:
            begin = edge.end()
    return "".join(pieces) + text[begin:]


def _operation(text: str) -> Operation:
    match = _OPERATION.match(text)
    if match is None:
        raise DumpError(f"{text!r} is not an operation of a bundle")
    result, opcode, rest = match.groups()
    predicate = _PREDICATE.search(rest)
    if predicate is None:
        return Operation(result, opcode, None, False, None, rest.strip())
    operands = (rest[: predicate.start()] + rest[predicate.end() :]).strip()
    negated, name, otherwise = predicate.groups()
    return Operation(result, opcode, name, bool(negated), otherwise, operands)


@dataclass(frozen=True)
class SlotUse:
    """The number of units of each kind that every bundle keeps busy.

    names: the kinds: MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU.
    capacity: how many units of the kind a bundle has.
    used: one row per bundle.
    """

    names: tuple[str, ...]
    capacity: tuple[int, ...]
    used: Int64[np.ndarray, "P U"]


def parse_slot_use(text: str, bundles: int) -> SlotUse:
    """Return the table of a utilization dump for a kernel of `bundles` bundles.

    Raises:
      DumpError: if the table is not one, or has fewer rows than bundles.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 4 or not lines[0].startswith("== CAPAC"):
        raise DumpError("the dump is not a table of slot utilization: it must start with its capacities")
    names = tuple(name.strip() for name in lines[1].split(","))
    used = np.array([line.split() for line in lines[4:]], np.int64).reshape(-1, len(names))
    if len(used) < bundles:
        raise DumpError(f"the table of slot utilization has {len(used)} rows for {bundles} bundles")
    # The row after the last bundle is the end of the kernel.
    return SlotUse(names, tuple(int(capacity) for capacity in lines[2].split()), used[:bundles])


_DUMP = re.compile(r"^(\d+)-(.+)-\d+-packed-bundles-post-ra\.txt$")
_USE = re.compile(r"^(\d+)-(.+)-\d+-pre-delay_hlo-static-per-bundle-utilization\.txt$")


@dataclass(frozen=True)
class KernelDump:
    """The two dumps of one kernel, by the name of its HLO instruction; "TLP" is the program that calls the others."""

    name: str
    bundles: Path
    slot_use: Path | None


def find_kernels(folder: Path) -> dict[str, KernelDump]:
    """Return the kernels dumped in a folder by one compilation."""
    uses = {match.groups(): path for path in folder.iterdir() if (match := _USE.match(path.name))}
    kernels = {}
    for path in sorted(folder.iterdir()):
        match = _DUMP.match(path.name)
        if match and "schedule-analysis" not in match.group(2):
            kernels[match.group(2)] = KernelDump(match.group(2), path, uses.get(match.groups()))
    return kernels
