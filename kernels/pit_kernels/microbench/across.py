"""One table over TPUs and GPUs: the resources and the least time of our kernels for a problem on each target.

The time of a TPU is that of its compiled schedule, or of its bytes. A GPU's schedule cannot be counted, so its time is
that of the products at the published peak, or of its bytes: much further from what a device will show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pit_kernels import gpu
from pit_kernels.microbench.generations import GENERATIONS
from pit_kernels.microbench.gpu_static import KernelRow
from pit_kernels.microbench.suite import Row
from pit_kernels.microbench.tables import OURS

COLUMNS = (
    *("operation", "problem", "direction", "target", "kernels", "each takes at most"),
    *("spills", "MB", "us at least", "bound by"),
)
"""Heads of the columns."""

NOTE = (
    "us at least, on a TPU: cycles of the compiled schedule / clock or bytes / bandwidth; on a GPU: products / "
    "published peak or bytes / bandwidth. No device has confirmed either."
)
"""What the times are, printed with every table."""


@dataclass(frozen=True)
class Line:
    """One problem in one direction on one target.

    takes: registers and memory of the kernel that takes most.
    spills: vector registers that a TPU stores, over all executions; bytes that threads of a GPU store.
    mb: bytes between memory and the cores, in 1e6; of a GPU every array once.
    """

    operation: str
    problem: str
    direction: str
    target: str
    kernels: int
    takes: str
    spills: int
    mb: float
    us: float
    bound: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts of the columns."""
        return (
            *(self.operation, self.problem, self.direction, self.target, str(self.kernels), self.takes),
            *(f"{self.spills:,}", f"{self.mb:,.1f}", f"{self.us:,.1f}", self.bound),
        )


def lines(of_tpus: Sequence[Row], of_gpus: Sequence[KernelRow]) -> list[Line]:
    """Return a line for each operation, problem, direction and target, in this order, TPUs before GPUs.

    Args:
      of_tpus: rows of the suite; those of other contenders than ours are left out.
      of_gpus: rows of GPU kernels.
    """
    found = [_of_tpu(row) for row in of_tpus if row.contender == OURS and not row.figures.get("tile")]
    grouped: dict[tuple[str, str, str], list[KernelRow]] = {}
    for row in of_gpus:
        grouped.setdefault((row.operation, row.problem, row.target), []).append(row)
    for key, rows in grouped.items():
        forward = [row for row in rows if "gradient" not in row.kernel]
        found.append(_of_gpu(key, "forward", forward))
        # The backward kernel of log-probabilities is launched once per chunk, and cuBLAS makes its products.
        if len(forward) < len(rows) and key[0] != "token_logprob":
            found.append(_of_gpu(key, "both", rows))
    targets = (*GENERATIONS, *gpu.ARCHITECTURES)
    return sorted(found, key=lambda x: (x.operation, x.problem, x.direction != "forward", targets.index(x.target)))


def markdown(table: Sequence[Line]) -> str:
    """Return the table for a page."""
    rule = "|---|---|---|---|---:|---|---:|---:|---:|---|"
    rows = [f"| {' | '.join(line.cells)} |" for line in table]
    return "\n".join([f"| {' | '.join(COLUMNS)} |", rule, *rows])


def _of_tpu(row: Row) -> Line:
    figures: Mapping[str, Any] = row.figures
    bound = "schedule" if figures["compute_us"] >= figures["memory_us"] else "memory"
    takes = f"{figures['vmem_bytes'] / 2**20:,.0f} MiB VMEM"
    return Line(
        *(row.operation, row.problem, row.direction, row.target, figures["launches"], takes, figures["spills"]),
        *(figures["hbm_bytes"] / 1e6, figures["us"], bound),
    )


def _of_gpu(key: tuple[str, str, str], direction: str, rows: Sequence[KernelRow]) -> Line:
    operation, problem, target = key
    peak, bandwidth = gpu.PEAK_FLOPS[target], gpu.BYTES_PER_S[target]
    products = sum(row.gflop for row in rows) * 1e9 / peak * 1e6
    memory = sum(row.least_mb for row in rows) * 1e6 / bandwidth * 1e6
    least = sum(max(row.gflop * 1e9 / peak, row.least_mb * 1e6 / bandwidth) for row in rows) * 1e6
    registers = max(row.machine["registers"] for row in rows)
    shared = max(row.machine["shared_bytes"] for row in rows) / 1024
    spills = sum(row.machine["spill_bytes"] for row in rows)
    takes = f"{registers} registers, {shared:,.0f} KiB shared"
    bound = "products" if products >= memory else "memory"
    least_mb = sum(row.least_mb for row in rows)
    return Line(operation, problem, direction, target, len(rows), takes, spills, least_mb, least, bound)
