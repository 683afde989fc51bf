"""Static cost of a compiled TPU program: cycles of every kernel with its real trip counts, and the bytes its DMAs move.

Cycles are bundles times how often each is executed, from running the scalar half of every kernel on the workload's
scalar operands (`machine`). `BLIND_SPOTS` lists the costs that this leaves out.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pit_kernels.microbench import machine
from pit_kernels.microbench.bundles import Bundle, KernelDump, SlotUse, parse_bundles, parse_slot_use
from pit_kernels.microbench.compiler import Compilation, compiled_for
from pit_kernels.microbench.control import Call, Control, Loop, control
from pit_kernels.microbench.generations import GENERATIONS, Generation
from pit_kernels.microbench.hlo import Instruction, Module, parse_module
from pit_kernels.microbench.layouts import parse_layout, words

BLIND_SPOTS = (
    "waits for DMAs and semaphores take no cycles: the time is the larger of cycles / clock and bytes / bandwidth",
    "bytes are those that DMAs between HBM and the core move; how well they use the bandwidth is not modelled",
)
"""What a static cost does not see; printed with every table."""


@dataclass(frozen=True)
class Hot:
    """The piece of straight code that most cycles go to.

    bundles: its length, which is the cycles of one pass.
    passes: how often it is executed.
    use: share of each kind of slot that is filled, by the compiler's own names (MXU, VALU, VLOAD, VSTORE, ...).
    """

    bundles: int
    passes: int
    use: dict[str, float]


@dataclass
class Kernel:
    """One kernel of a program, over all its executions.

    calls: executions; None where a loop or a conditional around it leaves them unknown.
    cycles: of all executions; None where the control flow or the number of executions is not known.
    hbm_bytes: moved between HBM and the core by all executions, by kind of DMA.
    fills, spills: vector registers reloaded and stored for want of registers, over all executions.
    notes: figures that are not known, with the reason.
    """

    name: str
    opcode: str
    calls: int | None
    bundles: int
    cycles: int | None = None
    hbm_bytes: dict[str, int] = field(default_factory=dict)
    hot: Hot | None = None
    fills: int = 0
    spills: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Static:
    """Static cost of one call of a program on one chip.

    kernels: in program order; the program itself, which calls the others, is the last, "(program)".
    vmem_bytes: most VMEM that a kernel reserves for itself, as far as the compiler says; 0 where it does not.
    """

    target: str
    kernels: list[Kernel]
    vmem_bytes: int

    @property
    def complete(self) -> bool:
        """Whether every kernel's cycles are known."""
        return all(kernel.cycles is not None for kernel in self.kernels)

    @property
    def cycles(self) -> int:
        """Cycles of all kernels that are known."""
        return sum(kernel.cycles or 0 for kernel in self.kernels)

    @property
    def hbm_bytes(self) -> int:
        """Bytes moved between HBM and the core."""
        return sum(sum(kernel.hbm_bytes.values()) for kernel in self.kernels)

    @property
    def compute_us(self) -> float:
        """Microseconds that the bundles take."""
        return self.cycles / GENERATIONS[self.target].clock_hz * 1e6

    @property
    def memory_us(self) -> float:
        """Microseconds that the bytes take at full bandwidth."""
        return self.hbm_bytes / GENERATIONS[self.target].hbm_bytes_per_s * 1e6

    @property
    def us(self) -> float:
        """The estimate: the larger of the two, kernel by kernel, for kernels follow one another."""
        generation = GENERATIONS[self.target]
        return (
            sum(
                max(
                    (kernel.cycles or 0) / generation.clock_hz,
                    sum(kernel.hbm_bytes.values()) / generation.hbm_bytes_per_s,
                )
                for kernel in self.kernels
            )
            * 1e6
        )

    @property
    def hot(self) -> Hot | None:
        """The hot piece of the kernel that takes most cycles in one."""
        pieces = [kernel.hot for kernel in self.kernels if kernel.hot is not None]
        return max(pieces, key=lambda hot: hot.bundles * hot.passes, default=None)

    @property
    def notes(self) -> list[str]:
        """Everything that is not known about the kernels."""
        return [f"{kernel.name}: {note}" for kernel in self.kernels for note in kernel.notes]


def analyse(
    function: Callable[..., Any], arguments: Sequence[Any], target: str, *, keep_dumps: Path | None = None
) -> Static:
    """Compile a program for a TPU that is not attached and count the cost of one call.

    Args:
      function: what to call; it is jitted unless it already is.
      arguments: its arguments. Arrays where they steer the program (a mask, lengths, lists of tiles): their values
        decide trip counts. A `jax.ShapeDtypeStruct` will do for the others.
      target: a key of `GENERATIONS`.
      keep_dumps: folder for the compiler's dumps; they are deleted when None.

    Raises:
      NoCompilerError: if libtpu is not installed, or was loaded before `prepare`.
      ValueError: if the target is not known.
    """
    with compiled_for(function, arguments, target, keep_dumps) as compilation:
        steering = control(compilation.jaxpr, jax.tree.leaves(tuple(arguments)))
        return _static(compilation, steering)


def _static(compilation: Compilation, steering: Control) -> Static:
    module = parse_module(compilation.hlo)
    trips = _trips(module, steering)
    calls = _pallas_calls(module, steering)
    generation = GENERATIONS[compilation.target]
    known: dict[str, tuple[list[Bundle], SlotUse | None]] = {}
    kernels = []
    same = _same_code(compilation.kernels["TLP"].bundles.parent)
    left = {name for name in compilation.kernels if name != "TLP" and not name.startswith("<")}
    for instruction, loops in module.walk():
        dump = compilation.kernels.get(instruction.name) or compilation.kernels.get(same.get(instruction.name, ""))
        if dump is None:
            continue
        left.discard(dump.name)
        if dump.name not in known:
            known[dump.name] = _read(dump)
        bundles, use = known[dump.name]
        counts = [trips.get(loop) for loop in loops]
        times = _product(counts)
        kernel = Kernel(instruction.name, instruction.opcode, times, len(bundles))
        call = calls.get(instruction.name)
        visits = [({}, times)] if call is None else _operands(call, instruction, module, kernel)
        if call is None and _is_kernel(instruction):
            kernel.notes.append("no call of the traced program has its operands, so that its scalars are not known")
        kernels.append(_cost(kernel, bundles, use, visits, generation))
    program = _program(compilation, module, trips, generation)
    if left:
        program.notes.append(f"compiled kernels that the program does not call: {', '.join(sorted(left))}")
        program.cycles = None
    kernels.append(program)
    reserved = re.findall(
        r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', compilation.hlo
    )
    return Static(compilation.target, kernels, max(map(int, reserved), default=0))


def _product(counts: Sequence[float | None]) -> int | None:
    """Return the executions of code in loops with these trips."""
    total = 1.0
    for count in counts:
        if count is None:
            return None
        total *= count
    return round(total)


def _read(dump: KernelDump) -> tuple[list[Bundle], SlotUse | None]:
    bundles = parse_bundles(dump.bundles.read_text())
    use = None if dump.slot_use is None else parse_slot_use(dump.slot_use.read_text(), len(bundles))
    return bundles, use


def _same_code(folder: Path) -> dict[str, str]:
    """Return the instructions that share another's code, by the compiler's map of duplicates."""
    same = {}
    for path in folder.glob("*-deduplication-map.txt"):
        key = ""
        for line in path.read_text().splitlines():
            if line.startswith("key:"):
                key = line.removeprefix("key:")
            elif line.startswith("  "):
                same[line.strip()] = key
    return same


def _trips(module: Module, steering: Control) -> dict[str, float | None]:
    """Return the mean trips of each loop of the module per entry; None where they are not known."""
    nested: dict[tuple[str, ...], list[str]] = defaultdict(list)
    by_xla: dict[str, float | None] = {}
    for instruction, loops in module.walk():
        if instruction.opcode == "while" and instruction.name not in by_xla:
            nested[loops].append(instruction.name)
            by_xla[instruction.name] = instruction.trip_count
    trips = dict(by_xla)

    def match(path: tuple[str, ...], traced: list[Loop]) -> bool:
        names = nested[path]
        return len(names) == len(traced) and all(
            match((*path, name), loop.inner) for name, loop in zip(names, traced, strict=True)
        )

    def take(path: tuple[str, ...], traced: list[Loop]) -> None:
        for name, loop in zip(nested[path], traced, strict=True):
            trips[name] = None if loop.trips is None else loop.trips / max(loop.entered, 1)
            take((*path, name), loop.inner)

    if match((), steering.loops):
        take((), steering.loops)
    return trips


def _pallas_calls(module: Module, steering: Control) -> dict[str, Call]:
    """Return the traced Pallas call of each custom call; those of one name on operands of one shape are in program
    order.
    """
    compiled: dict[Any, list[str]] = defaultdict(list)
    for instruction, _ in module.walk():
        if _is_kernel(instruction):
            shapes = tuple(parse_layout(module.by_name[name].shape).shape for name in instruction.operands)
            compiled[kernel_name(instruction.name), shapes].append(instruction.name)
    traced: dict[Any, list[Call]] = defaultdict(list)
    for call in steering.calls:
        traced[re.sub(r"\W", "_", call.name), call.shapes].append(call)
    matched: dict[str, Call] = {}
    for key, names in compiled.items():
        if len(traced[key]) == len(names):
            ordered = sorted(names, key=lambda name: int(name.rpartition(".")[2]) if "." in name else 0)
            matched.update(zip(ordered, traced[key], strict=True))
    return matched


def kernel_name(instruction: str) -> str:
    """Return the name that a Pallas call has in the program, from that of its instruction.

    >>> kernel_name("transpose_jvp_my_kernel__.3")
    'my_kernel'
    """
    name = re.sub(r"\.\d+$", "", instruction)
    while (within := re.fullmatch(r"(?:jvp|transpose|vmap)_(.+)_", name)) is not None:
        name = within[1]
    return name


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.rest


def _operands(
    call: Call, instruction: Instruction, module: Module, kernel: Kernel
) -> list[tuple[dict[int, Any], int | None]]:
    """Return the known operands of each execution, as words of memory, executions with the same operands taken
    together.
    """
    groups: dict[str, tuple[dict[int, Any], int]] = {}
    for visit in call.visits:
        placed = {}
        for index, value in visit.items():
            layout = parse_layout(module.by_name[instruction.operands[index]].shape)
            placed[index] = words(np.asarray(value), layout)
        key = hashlib.sha256(b"".join(bytes(str(i), "ascii") + placed[i].tobytes() for i in sorted(placed))).hexdigest()
        groups[key] = (placed, groups.get(key, ({}, 0))[1] + 1)
    kernel.calls = len(call.visits)
    return list(groups.values())


def _cost(
    kernel: Kernel,
    bundles: list[Bundle],
    use: SlotUse | None,
    visits: Sequence[tuple[dict[int, Any], int | None]],
    generation: Generation,
) -> Kernel:
    """Fill in the cost of all executions of a kernel."""
    total = np.zeros(len(bundles), np.int64)
    blocks: dict[tuple[int, int], int] = defaultdict(int)
    moved: dict[str, int] = defaultdict(int)
    guessed = 0
    for operands, times in visits:
        if times is None:
            kernel.notes.append("it stands in a loop or a branch that is executed a number of times that is not known")
            return kernel
        if times == 0:
            continue
        try:
            runs = [
                machine.run(bundles, operands, generation.name, generation.granule_bytes, core)
                for core in range(generation.cores if _asks_for_core(bundles) else 1)
            ]
        except machine.UnknownControlError as error:
            kernel.notes.append(str(error))
            return kernel
        slowest = max(runs, key=lambda run: int(run.executed.sum()))
        total = total + slowest.executed * times
        for begin, end, count in slowest.blocks:
            blocks[begin, end] += count * times
        for run in runs:
            guessed += run.guessed
            for kind, granules in run.granules.items():
                if "hbm" in kind:
                    moved[kind] += granules * generation.granule_bytes * times
    if guessed:
        kernel.notes.append(f"{guessed} DMAs stand under a condition or have a size that is not known")
    kernel.cycles = int(total.sum())
    kernel.hbm_bytes = dict(moved)
    if use is not None:
        kernel.fills = int(total @ use.used[:, use.names.index("VLOAD:FILL")])
        kernel.spills = int(total @ use.used[:, use.names.index("VSTORE:SPILL")])
        kernel.hot = _hot(blocks, use)
    return kernel


def _asks_for_core(bundles: Sequence[Bundle]) -> bool:
    return any(operation.operands.endswith("core id") for bundle in bundles for operation in bundle.operations)


def _hot(blocks: dict[tuple[int, int], int], use: SlotUse) -> Hot | None:
    if not any(blocks.values()):
        return None
    begin, end = max(blocks, key=lambda block: blocks[block] * (block[1] - block[0]))
    filled = use.used[begin:end].sum(axis=0) / (end - begin)
    shares = {name: round(float(f / c), 4) for name, f, c in zip(use.names, filled, use.capacity, strict=True) if c}
    return Hot(end - begin, blocks[begin, end], shares)


def _program(
    compilation: Compilation, module: Module, trips: dict[str, float | None], generation: Generation
) -> Kernel:
    """Return the program that calls the kernels: its own bundles, and the copies it starts between memories."""
    bundles = parse_bundles(compilation.kernels["TLP"].bundles.read_text())
    kernel = Kernel("(program)", "program", 1, len(bundles))
    order = list(dict.fromkeys(i.name for i, _ in module.walk() if i.opcode == "while"))
    times = np.ones(len(bundles))
    loops = _loops(bundles, machine.BRANCH_DELAY[generation.name])
    if len(loops) != len(order):
        kernel.notes.append(f"it has {len(loops)} loops for {len(order)} in the HLO; they are counted as one trip")
    else:
        for (begin, end), name in zip(loops, order, strict=True):
            times[begin:end] *= trips.get(name) or 0
    kernel.cycles = int(times.sum())
    copied = 0
    for instruction, around in module.walk():
        if instruction.opcode in ("copy-start", "slice-start") and instruction.shape.startswith("("):
            shapes = re.findall(r"\w+\[[\d,]*\](?:\{[^}]*\})?", instruction.shape)
            to, source = (parse_layout(shape) for shape in shapes[:2])
            if instruction.opcode == "slice-start":
                to, source = parse_layout(shapes[1]), parse_layout(shapes[0])
            count = _product([trips.get(loop) for loop in around])
            copied += (count or 0) * to.bytes * ((to.space == 0) + (source.space == 0))
    kernel.hbm_bytes = {"copied": copied} if copied else {}
    return kernel


def _loops(bundles: Sequence[Bundle], delay: int) -> list[tuple[int, int]]:
    """Return the first bundle and end of every loop, in the order they begin, outer ones first."""
    loops = []
    for number, bundle in enumerate(bundles):
        for operation in bundle.operations:
            match = re.search(r"bundleno = (\d+)", operation.operands) if operation.opcode == "sbr.rel" else None
            if match and int(match.group(1)) <= number:
                loops.append((int(match.group(1)), number + delay + 1))
    return sorted(loops, key=lambda loop: (loop[0], -loop[1]))
