"""Published figures of each generation of TPU, per chip; every estimated time of this package rests on this table.

Peak and bandwidth are those of Google's pages on the system architecture of v4, v5e, v5p and v6e
(cloud.google.com/tpu/docs). The clock follows from the peak: FLOP/s over two FLOP for each cell of the matrix units.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """One generation, per chip.

    topology: smallest slice that libtpu compiles for.
    cores: TensorCores; where there are two they run one program together (megacore).
    matrix_cells: multiply-accumulate cells of all matrix units of a core.
    peak_flops: bfloat16 FLOP/s.
    hbm_bytes_per_s: bandwidth of its memory.
    granule_bytes: unit of a DMA's size.
    """

    name: str
    topology: str
    cores: int
    matrix_cells: int
    peak_flops: float
    hbm_bytes_per_s: float
    granule_bytes: int

    @property
    def clock_hz(self) -> float:
        """Cycles per second of a core."""
        return self.peak_flops / (2 * self.matrix_cells * self.cores)


GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v4", "v4:2x2x1", 2, 4 * 128 * 128, 275e12, 1228e9, 512),
        Generation("v5e", "v5e:2x2", 1, 4 * 128 * 128, 197e12, 819e9, 32),
        Generation("v5p", "v5p:2x2x1", 2, 4 * 128 * 128, 459e12, 2765e9, 32),
        Generation("v6e", "v6e:2x2", 1, 4 * 256 * 256, 918e12, 1640e9, 32),
    )
}
