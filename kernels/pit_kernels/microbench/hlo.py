"""Reads the scheduled HLO of a compiled program: its instructions, their shapes and its loops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_COMPUTATION = re.compile(r"^(ENTRY )?%([^\s(]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([^\s=]+) = (.*)$")
_OPCODE = re.compile(r"^([a-z][\w\-]*)\((.*)$")


@dataclass(frozen=True)
class Instruction:
    """One instruction: name, shape as printed, opcode, names of its operands, the rest of its line.

    literal: value of a constant, number of a parameter.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    literal: str = ""

    def called(self, key: str) -> str | None:
        """Return the name of the computation that it calls as `key`."""
        match = re.search(rf"\b{key}=%([^\s,}}]+)", self.rest)
        return match.group(1) if match else None

    @property
    def trip_count(self) -> int | None:
        """Trips of a loop that XLA knows the number of."""
        match = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.rest)
        return int(match.group(1)) if match else None


@dataclass
class Module:
    """Computations by name, each the instructions in the order they run in."""

    entry: str
    computations: dict[str, list[Instruction]]
    by_name: dict[str, Instruction] = field(default_factory=dict)

    def trips(self, loop: Instruction) -> int | None:
        """Return the trips of a loop: as XLA knows them, else from its condition `i < n` where i starts at a constant.

        The counter goes up by one, as that of `jax.lax.scan` does; None where the condition is another one.
        """
        if loop.trip_count is not None:
            return loop.trip_count
        condition = loop.called("condition")
        test = self.computations[condition][-1] if condition is not None else None
        if test is None or test.opcode != "compare" or "direction=LT" not in test.rest:
            return None
        counter, end = (self.by_name.get(name) for name in test.operands)
        place = re.search(r"\bindex=(\d+)", counter.rest) if counter and counter.opcode == "get-tuple-element" else None
        start = self.by_name.get(loop.operands[0])
        if place is None or end is None or start is None or start.opcode != "tuple":
            return None
        first, last = self._constant(start.operands[int(place.group(1))]), self._constant(end.name)
        return None if first is None or last is None else max(last - first, 0)

    def _constant(self, name: str) -> int | None:
        """Return the value of a scalar constant, also of a copy of one."""
        instruction = self.by_name.get(name)
        while instruction is not None and instruction.opcode in ("copy", "bitcast", "copy-start", "copy-done"):
            instruction = self.by_name.get(instruction.operands[0])
        known = instruction is not None and re.fullmatch(r"-?\d+", instruction.literal)
        return int(instruction.literal) if instruction is not None and known else None

    def walk(
        self, computation: str | None = None, loops: tuple[str, ...] = ()
    ) -> Iterator[tuple[Instruction, tuple[str, ...]]]:
        """Return every instruction that the program itself runs, with the names of the loops and conditionals around
        it.
        """
        for instruction in self.computations[computation or self.entry]:
            yield instruction, loops
            if instruction.opcode == "while":
                for key in ("condition", "body"):
                    called = instruction.called(key)
                    if called is not None:
                        yield from self.walk(called, (*loops, instruction.name))
            elif instruction.opcode in ("call", "async-start"):
                called = instruction.called("to_apply" if instruction.opcode == "call" else "calls")
                if called is not None:
                    yield from self.walk(called, loops)
            elif instruction.opcode == "conditional":
                # Which branch runs is not known here: the conditional stands in `loops` as one without known trips.
                for called in re.findall(r"%([^\s,})]+)", instruction.rest):
                    if called in self.computations:
                        yield from self.walk(called, (*loops, instruction.name))


def parse_module(text: str) -> Module:
    """Parse the text of a module, as `Compiled.as_text()` returns it.

    Raises:
      ValueError: if it has no entry computation.
    """
    entry, current = None, None
    computations: dict[str, list[Instruction]] = {}
    by_name = {}
    for line in _joined(text):
        opening = _COMPUTATION.match(line)
        if opening:
            current = opening.group(2)
            computations[current] = []
            entry = current if opening.group(1) else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            instruction = _instruction(match.group(2), match.group(3))
            computations[current].append(instruction)
            by_name[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text has no ENTRY computation; it must be the HLO of a compiled program")
    return Module(entry, computations, by_name)


def _joined(text: str) -> Iterator[str]:
    """Join lines that continue: attributes hold JSON with line breaks."""
    held = ""
    for line in text.splitlines():
        starts = line.startswith(("  %", "  ROOT %", "%", "ENTRY ", "}", "HloModule"))
        if starts and held:
            yield held
            held = ""
        held = held + line if held else line
    yield held


def _instruction(name: str, text: str) -> Instruction:
    shape, rest = _take_shape(text)
    match = _OPCODE.match(rest)
    if match is None:
        return Instruction(name, shape, "", (), rest)
    opcode, rest = match.groups()
    inside, rest = _take_parenthesis(rest)
    literal = inside if opcode in ("constant", "parameter") else ""
    return Instruction(name, shape, opcode, tuple(re.findall(r"%([^\s,()]+)", inside)), rest, literal)


def _take_shape(text: str) -> tuple[str, str]:
    if text.startswith("("):
        inside, rest = _take_parenthesis(text[1:])
        return f"({inside})", rest.lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _take_parenthesis(text: str) -> tuple[str, str]:
    """Return the text before the closing parenthesis, and the text after it."""
    depth = 1
    for position, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[:position], text[position + 1 :]
    return text, ""
