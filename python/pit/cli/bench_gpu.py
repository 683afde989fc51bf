"""The part of `pit bench kernels` for GPUs: a table of what the kernels take, without a GPU."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from pit.terminal import Terminal

GPUS = ("sm_80", "sm_90", "sm_100")
GPU_OPERATIONS = ("three_way_attention", "token_logprob", "cached_attention")


def rows_of_gpus(
    op: str, workloads: Sequence[str], targets: Sequence[str], unused: Sequence[str], tell: Callable[[str], None]
) -> list[Any]:
    """Count the GPU kernels of an operation.

    Args:
      op: operation.
      workloads: problems by name; all of the operation when empty.
      targets: architectures.
      unused: names of the options that the caller gave and GPUs do not have.
      tell: called with a line about every step.

    Returns:
      One `gpu_static.KernelRow` per kernel of each problem and target.

    Raises:
      ValueError: if the options do not fit together, or Triton is missing.
    """
    from pit_kernels import triton_call
    from pit_kernels.microbench import gpu_static

    if not targets:
        raise ValueError(
            f"--target is v5e for --op {op}, which is counted for GPUs only; give one of {', '.join(GPUS)}"
        )
    if op not in GPU_OPERATIONS:
        raise ValueError(f"--op is {op}, which has no GPU kernels; operations with some: {', '.join(GPU_OPERATIONS)}")
    if unused:
        raise ValueError(f"{unused[0]} is given with --target {targets[0]}; only TPUs have it: leave it out")
    with triton_call.recorded():
        reason = triton_call.absent_reason()
    if reason is not None:
        raise ValueError(f"--target is {targets[0]}: {reason}")
    rows = []
    for target in targets:
        for case in gpu_static.named_cases(op, workloads):
            tell(f"{op} {case.name}: {target}")
            rows += gpu_static.count(case, target)
    return rows


def count_for_gpus(
    op: str,
    workloads: Sequence[str],
    targets: Sequence[str],
    out: Path | None,
    check: Path | None,
    unused: Sequence[str],
    tell: Callable[[str], None],
) -> None:
    """Count the GPU kernels of an operation and print a table; the arguments are the options of the command.

    Args:
      op: operation.
      workloads: problems by name; all of the operation when empty.
      targets: architectures.
      out: results file that keeps the rows.
      check: results file whose figures are ceilings.
      unused: names of the options that the caller gave and GPUs do not have.
      tell: called with a line about every step.

    Raises:
      ValueError: if the options do not fit together, Triton is missing, or a kernel is worse than its ceilings.
    """
    from pit_kernels.microbench import gpu_static

    rows = rows_of_gpus(op, workloads, targets, unused, tell)
    show_gpu(rows)
    if out is not None:
        gpu_static.save(rows, out)
    if check is None:
        return
    for name in gpu_static.uncommitted(rows, check):
        tell(f"not checked: {name} has no row in {check}")
    found = gpu_static.worse(rows, check)
    if found:
        raise ValueError(f"worse than {check}: {'; '.join(found)}")


def show_across(of_tpus: Sequence[Any], of_gpus: Sequence[Any]) -> None:
    """Print one table of TPUs and GPUs, and what its times are; rows as of `across.lines`."""
    from pit_kernels.microbench import across

    console = Terminal(width=max(Terminal().width, 150))
    table = Table()
    for name in across.COLUMNS:
        table.add_column(name, justify="right" if name in ("kernels", "spills", "MB", "us at least") else "left")
    for line in across.lines(of_tpus, of_gpus):
        table.add_row(*line.cells)
    console.print(table)
    console.print(across.NOTE, highlight=False, markup=False)


_GPU_COLUMNS = ("programs", "tile", "warps", "stages", "registers", "spills", "shared KiB", "products", "GFLOP")


def show_gpu(rows: Sequence[Any]) -> None:
    """Print a table of the kernels of every problem and target, and what its figures do not say."""
    console = Terminal(width=max(Terminal().width, 150))
    groups: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        groups.setdefault((row.problem, row.target), []).append(row)
    for (problem, target), kernels in groups.items():
        table = Table(title=f"{problem}, {target}, per launch", title_justify="left")
        table.add_column("kernel", no_wrap=True)
        for name in (*_GPU_COLUMNS, "least MB", "loaded MB"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in kernels:
            machine = row.machine
            table.add_row(
                *(row.kernel, f"{row.programs:,}", row.tile, str(row.warps), str(row.stages)),
                *(str(machine["registers"]), f"{machine['spill_bytes']:,}", f"{machine['shared_bytes'] / 1024:,.1f}"),
                *(machine["matrix"], f"{row.gflop:,.1f}", f"{row.least_mb:,.1f}", f"{row.loaded_mb:,.1f}"),
            )
        console.print(table)
    for line in (
        "least MB: every array once; loaded MB: what all programs ask for, from L2 or memory",
        "not counted: time, waits, occupancy, what XLA computes beside the kernels",
    ):
        console.print(line, highlight=False, markup=False)
