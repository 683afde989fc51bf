"""Runs the scalar half of a compiled TPU kernel: how often each bundle is executed, and which DMAs it issues.

A TPU core takes one VLIW bundle per cycle, and its scalar unit alone decides which comes next. So the scalar operations
are executed exactly, from the scalar operands that the kernel is called with, and vectors are left out. A value that
depends on unknown data (popped from a vector, loaded from an unknown operand) is `UNKNOWN`; it may flow through
addresses and stores, and a branch on it is an error, never a guess.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from pit_kernels.microbench.bundles import Bundle, Operation

BRANCH_DELAY = {"v4": 1, "v5e": 4, "v5p": 4, "v6e": 4, "v7x": 6}
"""Bundles after a branch that are executed before it takes effect."""

MOST_BLOCKS = 200_000_000
"""Blocks executed before a run is given up: minutes of Python."""

LANES = 128
"""Words of a row of vector memory."""

_SPACE_STRIDE = {"smem": 2**16, "vmem": 2**18, "hbm": 2**21, "cmem": 2**18, "sflag": 2**10}
_POINTER = re.compile(r"(?:int_to_ptr|scalar_lea|inlined_call_operand)\.(\w+)")


class UnknownControlError(ValueError):
    """A kernel's control flow depends on data that is not known; the message names the bundle and the operation."""


class _Unknown:
    """A value that is not known: anything computed from it is not known, and nothing may be decided by it."""

    __slots__ = ()

    def _same(self, *_: Any) -> "_Unknown":
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __lshift__ = __rlshift__ = _same
    __rshift__ = __rrshift__ = __xor__ = __rxor__ = __invert__ = __neg__ = _same
    __lt__ = __le__ = __gt__ = __ge__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _same

    def __and__(self, other: Any) -> Any:
        return False if other is False else self

    def __or__(self, other: Any) -> Any:
        return True if other is True else self

    __rand__ = __and__
    __ror__ = __or__

    def __bool__(self) -> bool:
        raise UnknownControlError("a branch depends on data that is not known")

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Run:
    """The effects of one call of a kernel.

    executed: times each bundle is executed.
    granules: by kind of DMA, such as "hbm_to_vmem", how many granules of memory all of them move.
    transfers: by kind, how many DMAs are issued.
    guessed: DMAs under an unknown condition, counted as issued, and DMAs of unknown size, counted as 0.
    blocks: (first bundle, bundle after the last, times executed) of the straight pieces of code.
    """

    executed: Int64[np.ndarray, " P"]
    granules: dict[str, int]
    transfers: dict[str, int]
    guessed: int
    blocks: list[tuple[int, int, int]]


def run(
    bundles: Sequence[Bundle],
    operands: Mapping[int, Int32[np.ndarray, " words"]],
    target: str,
    granule_bytes: int,
    core: int = 0,
) -> Run:
    """Execute a kernel once on one core.

    Args:
      bundles: its code.
      operands: known operands by their index in the call, as the words of memory they lie in.
      target: generation of TPU, a key of BRANCH_DELAY.
      granule_bytes: unit of a DMA's size, bytes.
      core: index of the core on its chip.

    Raises:
      UnknownControlError: if a branch depends on data that is not known.
    """
    return _Program(bundles, BRANCH_DELAY[target], granule_bytes).run(operands, core)


@dataclass(frozen=True)
class _Block:
    """Straight code from a place that control can reach to the end of the next branch's delay."""

    begin: int
    end: int
    branch: int | None


class _Program:
    """Python source of the scalar operations, block by block, and the names that it needs."""

    def __init__(self, bundles: Sequence[Bundle], delay: int, granule_bytes: int) -> None:
        self.bundles = bundles
        self.granule_bytes = granule_bytes
        self.bases: dict[str, tuple[str, int]] = {}
        self.next_base: dict[str, int] = defaultdict(int)
        self.operand_of: dict[int, tuple[str, int]] = {}
        self.kinds: list[str] = []
        self.names: set[str] = set()
        self.spaces: dict[str, str] = {}
        self.divisions: dict[str, str] = {}
        self.defined = {
            operation.result: number
            for number, bundle in enumerate(bundles)
            for operation in bundle.operations
            if operation.result
        }
        self.blocks = self._split(delay)
        self.source = self._generate()

    def _split(self, delay: int) -> list[_Block]:
        branches = {
            number: _target(operation)
            for number, bundle in enumerate(self.bundles)
            for operation in bundle.operations
            if operation.opcode.startswith("sbr")
        }
        leaders = {0} | set(branches.values()) | {number + delay + 1 for number in branches}
        blocks = []
        for begin in sorted(leader for leader in leaders if leader < len(self.bundles)):
            end, branch = begin, None
            while end < len(self.bundles):
                if end > begin and branch is None and end in leaders:
                    break
                if end in branches:
                    if branch is not None:
                        raise UnknownControlError(f"bundle {end:#x} branches in the delay of the branch at {branch:#x}")
                    branch = end
                end += 1
                if branch is not None and end == branch + delay + 1:
                    break
            blocks.append(_Block(begin, end, branch))
        return blocks

    def _generate(self) -> str:
        bodies = []
        index = {block.begin: number for number, block in enumerate(self.blocks)}
        for number, block in enumerate(self.blocks):
            lines = [f"c{number} += 1"]
            target = None
            for address in range(block.begin, block.end):
                lines += self._phis(address)
                for operation in _ordered(self.bundles[address].operations):
                    if operation.opcode.startswith("sbr"):
                        target = _target(operation)
                        lines += [f"at = {address}", f"go = {self._condition(operation)}"]
                    else:
                        lines += self._statements(operation, address)
            following = index.get(block.end, -1)
            if target is None:
                lines += [f"b = {following}", "back = False"]
            else:
                lines.append(f"b = {index.get(target, -1)} if go else {following}")
                lines.append(f"back = {'go' if target <= block.begin else False}")
            bodies.append(lines)
        counters = [f"c{number}" for number in range(len(bodies))]
        totals = [f"{letter}{kind}" for kind in range(len(self.kinds)) for letter in "dn"]
        source = ["def kernel(M, U, X, core, limit):"]
        source += [f"    {name} = 0" for name in (*counters, *totals, "guessed", "b", "at", "steps", "back")]
        source += [f"    {name} = U" for name in sorted(self.names)]
        source += ["    while b >= 0:", "        steps += 1", "        if steps > limit:", "            break"]
        source += ["        try:"]
        source += _chosen(bodies, 0, len(bodies), "            ")
        source += ["        except X as error:", "            error.args = (f'{error.args[0]} at bundle {at:#x}',)"]
        source += ["            raise"]
        listed = ", ".join
        source += [f"    return [{listed(counters)}], [{listed(totals)}], guessed, steps > limit"]
        return "\n".join(source)

    def _condition(self, operation: Operation) -> str:
        if operation.predicate is None:
            return "True"
        name = self._name(operation.predicate)
        return (
            f"{name} is False or ({name} is not True and not {name})"
            if operation.negated
            else f"True if {name} else False"
        )

    def _statements(self, operation: Operation, address: int) -> list[str]:
        code = operation.opcode
        if code.startswith("dma.") and code != "dma.done.wait":
            return self._dma(operation, address)
        if code == "sst":
            return self._store(operation, address)
        if code.startswith("sdivrem"):
            self.divisions[operation.result or ""] = self._name(f"q{operation.result}")
            return [f"{self._name(f'q{operation.result}')} = {self._division(operation)}"]
        if operation.result is None or not re.match(r"[sp]\d+_[sp]\d+$", operation.result):
            return []
        expression = self._expression(operation)
        pointer = _POINTER.match(code)
        if pointer:
            self.spaces[operation.result] = pointer.group(1)
        if operation.predicate is not None:
            predicate = self._name(operation.predicate)
            holds, fails = ("False", "True") if operation.negated else ("True", "False")
            otherwise = "U" if operation.otherwise is None else self._value(operation.otherwise)
            expression = f"({expression}) if {predicate} is {holds} else ({otherwise}) if {predicate} is {fails} else U"
        return [f"{self._name(operation.result)} = {expression}"]

    def _phis(self, address: int) -> list[str]:
        """Return the values that a loop carries: from before it where control enters, from its end where control comes
        back.

        The names are those of values and not of registers: a register may still be in use while a load into it is
        on its way.
        """
        results, sources = [], []
        for operation in self.bundles[address].operations:
            if operation.opcode not in _PHIS:
                continue
            values = _split_operands(operation.operands)
            carried = [value for value in values if self.defined.get(value[1:], -1) >= address]
            before = [value for value in values if value not in carried]
            if self.bundles[address].tag != "LB" or len(carried) != 1 or len(before) != 1:
                raise UnknownControlError(
                    f"bundle {address:#x} joins values in a way that is not a loop's: {operation}"
                )
            results.append(self._name(operation.result))
            sources.append(f"{self._value(carried[0])} if back else {self._value(before[0])}")
        return [f"{', '.join(results)} = {', '.join(sources)}"] if results else []

    def _dma(self, operation: Operation, address: int) -> list[str]:
        operands = re.sub(r"\[thread:\$\d+\]", "", operation.operands)
        parts = [part.strip() for part in operands.split(",") if part.strip()]
        source, size, destination = parts[0], self._value(parts[1]), parts[2]
        kind = operation.opcode.removeprefix("dma.")
        if kind == "general":
            kind = f"{self._space(source)}_to_{self._space(destination)}"
        if kind not in self.kinds:
            self.kinds.append(kind)
        number = self.kinds.index(kind)
        lines = [f"n{number} += 1", f"size = {size}", "if size.__class__ is int:", f"    d{number} += size"]
        lines += ["else:", "    guessed += 1"]
        if kind.endswith("_to_smem"):
            copied = f"({self._value(source)}, {self._value(destination)}, {size})"
            lines.append(f"M.copy{copied}")
        if operation.predicate is None:
            return lines
        predicate = self._name(operation.predicate)
        head = [f"if {predicate} is not {'True' if operation.negated else 'False'}:"]
        head += [f"    if {predicate} is U:", "        guessed += 1"]
        return head + ["    " + line for line in lines]

    def _space(self, operand: str) -> str:
        return self.spaces.get(operand.lstrip("%"), "unknown")

    def _store(self, operation: Operation, address: int) -> list[str]:
        where, value = _memory(operation.operands)
        if where is None:
            return []
        base = next((self._base(part, "smem") for part in where.split(" + ") if part.startswith("#allocation")), None)
        place = f"{self._address(where)}, {base}"
        lines = [f"at = {address}", f"M.put({place}, {self._value(value)})"]
        if operation.predicate is None:
            return lines
        predicate = self._name(operation.predicate)
        holds, fails = ("False", "True") if operation.negated else ("True", "False")
        return [
            f"at = {address}",
            f"if {predicate} is {holds}: M.put({place}, {self._value(value)})",
            f"elif {predicate} is not {fails}: M.put({place}, U)",
        ]

    def _division(self, operation: Operation) -> str:
        words = operation.operands.replace(",", " ").split()
        symbol = "%" if words[-1] == "kRem" else "//"
        if words[-1] not in ("kRem", "kDiv"):
            return "U"
        first, second = (f"({self._value(word)} & 0xffffffff)" for word in words[:2])
        return f"{first} {symbol} {second}"

    def _expression(self, operation: Operation) -> str:
        code = operation.opcode
        base, _, suffix = code.partition(".")
        if base == "inlined_call_operand":
            return self._operand(operation, suffix)
        if code == "sld" and operation.operands.endswith("core id"):
            return "core"
        if code == "sld":
            where, _ = _memory(operation.operands)
            return "U" if where is None else f"M.get({self._address(where)}, U)"
        if code == "spop.drf":
            return self.divisions.get(operation.operands.lstrip("%"), "U")
        values = [self._value(value) for value in _split_operands(operation.operands)]
        unsigned = [f"({value} & 0xffffffff)" for value in values]
        if base == "scalar_select":
            return f"pick({values[0]}, {values[1]}, {values[2]}, U)"
        if base == "scmp":
            return _comparison(code, values, unsigned)
        if base in ("smin", "smax") and len(values) == 2:
            signed = suffix.startswith("s32")
            first, second = values if signed else unsigned
            return (_WRAP if not signed else "{}").format(f"{base}({first}, {second}, U)")
        if base in _BINARY and len(values) == 2:
            return _BINARY[base].format(a=values[0], b=values[1], c=unsigned[0], d=unsigned[1])
        if base in ("smov", "pmov", "int_to_ptr", "copy"):
            return values[0]
        if base == "pneg":
            return f"{values[0]} ^ True"
        return "U"

    def _operand(self, operation: Operation, space: str) -> str:
        index = re.search(r"index: (\d+)", operation.operands)
        if index is None or operation.result is None:
            return "U"
        if space not in _SPACE_STRIDE:
            return f"M.scalar({index.group(1)})"
        base = self._base(f"operand{index.group(1)}", space)
        self.operand_of[int(index.group(1))] = (space, base)
        return str(base)

    def _base(self, name: str, space: str) -> int:
        if name not in self.bases:
            self.next_base[space] += _SPACE_STRIDE[space]
            self.bases[name] = (space, self.next_base[space])
        return self.bases[name][1]

    def _address(self, text: str) -> str:
        return " + ".join(self._value(part.strip()) for part in text.split(" + "))

    def _value(self, text: str) -> str:
        text = text.strip()
        if text.startswith("%"):
            # The allocation that an address is in may follow its name.
            return self._name(text[1:].partition(" ")[0])
        if text.startswith("[") and text.endswith("]"):
            return self._address(text[1:-1])
        if text.startswith("#allocation"):
            return str(self._base(text, "smem"))
        number = re.fullmatch(r"\$?(-?(?:0x[0-9a-f]+|\d+))", text)
        if number:
            value = int(number.group(1), 0)
            return str(value - 2**32 if value >= 2**31 else value)
        return {"true": "True", "false": "False"}.get(text, "U")

    def _name(self, name: str | None) -> str:
        safe = f"v_{name}"
        self.names.add(safe)
        return safe

    def run(self, operands: Mapping[int, Int32[np.ndarray, " words"]], core: int) -> Run:
        spills = frozenset(base for name, (_, base) in self.bases.items() if name.endswith("_spill"))
        memory = _Memory(self.operand_of, operands, self.granule_bytes, spills)
        scope: dict[str, Any] = {"same": _same, "pick": _pick, "smin": _least, "smax": _most}
        exec(compile(self.source, "<scalar half of a kernel>", "exec"), scope)
        counts, totals, guessed, exceeded = scope["kernel"](memory, UNKNOWN, UnknownControlError, core, MOST_BLOCKS)
        if exceeded:
            raise UnknownControlError(f"the kernel runs more than {MOST_BLOCKS} blocks; take a smaller workload")
        executed = np.zeros(len(self.bundles), np.int64)
        for block, count in zip(self.blocks, counts, strict=True):
            executed[block.begin : block.end] += count
        return Run(
            executed,
            {kind: int(totals[2 * number]) for number, kind in enumerate(self.kinds)},
            {kind: int(totals[2 * number + 1]) for number, kind in enumerate(self.kinds)},
            int(guessed),
            [(block.begin, block.end, int(count)) for block, count in zip(self.blocks, counts, strict=True)],
        )


class _Memory(dict[Any, Any]):
    """Scalar memory, word by word, filled by copies of the operands that are known."""

    def __init__(
        self,
        places: Mapping[int, tuple[str, int]],
        operands: Mapping[int, Int32[np.ndarray, " words"]],
        granule_bytes: int,
        spills: frozenset[int],
    ) -> None:
        super().__init__()
        self.spills = spills
        self.operands = operands
        self.granule_words = granule_bytes // 4
        self.sources = {base: (index, space) for index, (space, base) in places.items()}
        for index, (space, base) in places.items():
            if space == "smem" and index in operands:
                self.update(enumerate(operands[index].tolist(), base))

    def put(self, place: Any, base: int | None, value: Any) -> None:
        """Store a value. A store to an unknown place makes everything in its allocation unknown.

        Where that is not known either, only spilled registers stay: their slots are read and written by name alone.
        """
        if place is not UNKNOWN:
            self[place] = value
            return
        stride = _SPACE_STRIDE["smem"]
        hit = (lambda known: known // stride == base // stride) if base is not None else self._may_be_pointed_at
        for known in [known for known in self if hit(known)]:
            del self[known]

    def _may_be_pointed_at(self, place: int) -> bool:
        return place // _SPACE_STRIDE["smem"] * _SPACE_STRIDE["smem"] not in self.spills

    def scalar(self, index: int) -> Any:
        return int(self.operands[index][0]) if index in self.operands else UNKNOWN

    def copy(self, source: Any, destination: Any, granules: Any) -> None:  # type: ignore[override]
        """Run a DMA into scalar memory. Its pointers count granules; those of operands count sixteen on v5e and v6e.

        A pointer into vector memory counts rows of `LANES` words, unless it was multiplied to granules.
        """
        if source is UNKNOWN or destination is UNKNOWN or granules is UNKNOWN:
            return
        for base, (index, space) in self.sources.items():
            for origin, words in (
                (base, LANES if space == "vmem" else self.granule_words),
                (base << 4, self.granule_words),
            ):
                offset = (source - origin) * words
                if index in self.operands and 0 <= offset < len(self.operands[index]):
                    copied = self.operands[index][offset : offset + granules * self.granule_words]
                    self.update(enumerate(copied.tolist(), destination))
                    return


def _same(first: Any, second: Any, unknown: Any) -> Any:
    return unknown if first is unknown or second is unknown else first == second


def _least(first: Any, second: Any, unknown: Any) -> Any:
    return unknown if first is unknown or second is unknown else min(first, second)


def _most(first: Any, second: Any, unknown: Any) -> Any:
    return unknown if first is unknown or second is unknown else max(first, second)


def _pick(predicate: Any, chosen: Any, other: Any, unknown: Any) -> Any:
    return chosen if predicate is True else other if predicate is False else unknown


_WRAP = "((({}) + 0x80000000 & 0xffffffff) - 0x80000000)"
_BINARY = {
    "sadd": _WRAP.format("{a} + {b}"),
    "ssub": _WRAP.format("{a} - {b}"),
    "smul": _WRAP.format("{a} * {b}"),
    "scalar_lea": "{a} + {b}",
    "sshll": _WRAP.format("{a} << {b}"),
    "sshra": "{a} >> {b}",
    "sshrl": _WRAP.format("{c} >> {b}"),
    "sand": "{a} & {b}",
    "sor": "{a} | {b}",
    "sxor": "{a} ^ {b}",
    "por": "{a} | {b}",
    "pand": "{a} & {b}",
    "pxor": "{a} ^ {b}",
    "pnand": "({a} & {b}) ^ True",
    "pnor": "({a} | {b}) ^ True",
}
_PHIS = ("sphi", "pphi")
_COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _comparison(code: str, values: list[str], unsigned: list[str]) -> str:
    _, relation, kind, *_ = code.split(".")
    if kind not in ("s32", "u32") or len(values) != 2:
        return "U"
    first, second = values if kind == "s32" else unsigned
    if relation in _COMPARISONS:
        return f"{first} {_COMPARISONS[relation]} {second}"
    return f"same({first}, {second}, U)" if relation == "eq" else f"same({first}, {second}, U) ^ True"


def _memory(operands: str) -> tuple[str | None, str]:
    """Return the address within scalar memory and what follows it; None for other memories."""
    match = re.match(r"\[smem:\[(.*?)\]\]\s*(.*)$", operands) or re.match(r"\[([^\[\]:]*)\]\s*(.*)$", operands)
    return (None, "") if match is None else (match.group(1), match.group(2))


def _split_operands(text: str) -> list[str]:
    text = re.sub(r"\[resolvable:\$\w+\]", "", text)
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def _target(operation: Operation) -> int:
    match = re.search(r"bundleno = (\d+)", operation.operands)
    if operation.opcode != "sbr.rel" or match is None:
        raise UnknownControlError(f"{operation.opcode} {operation.operands} is a branch to a place that is not known")
    return int(match.group(1))


def _ordered(operations: Sequence[Operation]) -> list[Operation]:
    """Return the operations of a bundle but its phis, each after those whose results it reads; loads precede stores."""
    left = [operation for operation in operations if operation.opcode not in _PHIS]
    left.sort(key=lambda operation: operation.opcode == "sst")
    defined = {operation.result for operation in left if operation.result}
    ordered: list[Operation] = []
    while left:
        for operation in left:
            text = f"{operation.operands} %{operation.predicate} {operation.otherwise}"
            read = set(re.findall(r"%(\w+)", text))
            if not (read & defined) - {operation.result}:
                break
        else:
            raise UnknownControlError(f"the operations of a bundle depend on each other in a circle: {left[0]}")
        left.remove(operation)
        defined.discard(operation.result)
        ordered.append(operation)
    return ordered


def _chosen(bodies: list[list[str]], low: int, high: int, indent: str) -> list[str]:
    """Return a choice among blocks by halves: kernels have hundreds."""
    if high - low == 1:
        return [indent + line for line in bodies[low]]
    middle = (low + high) // 2
    return [
        f"{indent}if b < {middle}:",
        *_chosen(bodies, low, middle, indent + "    "),
        f"{indent}else:",
        *_chosen(bodies, middle, high, indent + "    "),
    ]
