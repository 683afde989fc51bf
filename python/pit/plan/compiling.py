"""Compilation of the programs of stages: each once, however many stages run it, with the time that is left."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from pit.plan.account import Account, account, refused
from pit.plan.flops import flops
from pit.plan.programs import Placed, Setting, programs_of
from pit.plan.target import Target
from pit.run.stage import Stage
from pit.train.log import Reporter
from pit_kernels.microbench.compiler import no_persistent_cache


@dataclass(frozen=True)
class Row:
    """A program of a stage.

    placed: the program, and what lies beside it.
    account: account of the compiled program.
    twin: stage and name of the equal program that was compiled before; empty for the first one.
    """

    placed: Placed
    account: Account
    twin: str = ""

    @property
    def name(self) -> str:
        """Its part in a step."""
        return self.placed.program.name

    @property
    def peak(self) -> int:
        """Bytes on a chip while it runs, without code."""
        return self.account.peak + self.placed.beside_bytes


@dataclass(frozen=True)
class StagePlan:
    """A stage with its programs, in the order of a step."""

    stage: Stage
    rows: Sequence[Row]

    @property
    def code(self) -> int:
        """Bytes of code: all programs of the stage stay loaded."""
        return sum({id(row.account): row.account.code for row in self.rows}.values())

    @property
    def worst(self) -> Row:
        """The program during which most memory is used."""
        return max(self.rows, key=lambda row: row.peak)

    @property
    def peak(self) -> int:
        """Most bytes on a chip."""
        return self.worst.peak + self.code


class Lowered:
    """A program on its way to the compiler.

    Attributes:
        placed: the program.
        key: equal for equal programs of different stages.
        size: characters of the program as text.
    """

    def __init__(self, placed: Placed, setting: Setting) -> None:
        self.placed = placed
        with no_persistent_cache(), jax.set_mesh(setting.mesh):
            self.traced = placed.program.trace()
            self._lowered = self.traced.lower(lowering_platforms=("tpu",))
        text = self._lowered.as_text()
        self.size, self.key = len(text), hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def compile(self, chips: int) -> Account:
        """Return the account of the compiled program; one that does not fit a chip has what the compiler asked for."""
        begin, steps = time.perf_counter(), self.placed.program.loop_steps
        with no_persistent_cache():
            try:
                compiled = self._lowered.compile()
            except Exception as error:  # Other errors are raised again.
                asked = refused(error)
                if asked is None:
                    raise
                work = flops(self.traced.jaxpr, loop_steps=steps) / chips
                return Account(flops=work, seconds=time.perf_counter() - begin, refused=asked)
        seconds = time.perf_counter() - begin
        return account(self.traced, compiled, chips=chips, loop_steps=steps, seconds=seconds)


def plan(stages: Sequence[Stage], setting: Setting, target: Target, reporter: Reporter) -> list[StagePlan]:
    """Compile the programs of stages for a slice.

    Args:
        stages: the stages.
        setting: the run, on a mesh over the slice.
        target: the slice.
        reporter: receiver of progress; the time left goes by the sizes of the programs.
    """
    reporter.update(0, 0, "tracing")
    lowered = [(stage, [Lowered(placed, setting) for placed in programs_of(stage, setting)]) for stage in stages]
    distinct = {each.key: each.size for _, programs in lowered for each in programs}
    total, done, spent_s = sum(distinct.values()), 0, 0.0
    known: dict[str, tuple[Account, str]] = {}
    plans = []
    for stage, programs in lowered:
        rows = []
        for each in programs:
            name, twin = each.placed.program.name, ""
            if each.key in known:
                of_twin, twin = known[each.key]
            else:
                left = f", about {spent_s / done * (total - done) / 60:.0f} min left" if done else ""
                reporter.update(len(known), len(distinct), f"{stage.name}: {name}{left}")
                of_twin = each.compile(len(target.devices))
                known[each.key] = of_twin, f"{stage.name}: {name}"
                done, spent_s = done + each.size, spent_s + of_twin.seconds
            rows.append(Row(each.placed, of_twin, twin))
        plans.append(StagePlan(stage, rows))
    reporter.update(len(known), len(distinct), "done")
    return plans
