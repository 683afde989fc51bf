"""Published figures of each generation of TPU, per device; every estimated time of this package rests on this table.

A device is a chip, but of v7x one of the two cores of a chip, which JAX shows as two devices. Peak, memory and
bandwidths are those of Google's pages on the architecture of v4, v5e, v5p, v6e and v7x (cloud.google.com/tpu/docs). The
network's is half of what they call bidirectional; v4's is six links of 50 GB/s (Jouppi et al. 2023, arXiv
2304.01433). The clock follows from the peak: FLOP/s over two FLOP for each cell of the matrix units.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """One generation, per device.

    topology: smallest slice that libtpu compiles for.
    cores: TensorCores; where there are two they run one program together (megacore).
    matrix_cells: multiply-accumulate cells of all matrix units of a core.
    peak_flops: bfloat16 FLOP/s.
    hbm_bytes_per_s: bandwidth of its memory.
    granule_bytes: unit of a DMA's size.
    hbm_gib: memory that libtpu's compiler (0.0.42) gives a program, GiB: what is left of 32, 16, 95 and 32 GB.
    network_bytes_per_s: all links of the device to others of its slice together, in one direction.
    """

    name: str
    topology: str
    cores: int
    matrix_cells: int
    peak_flops: float
    hbm_bytes_per_s: float
    granule_bytes: int
    hbm_gib: float
    network_bytes_per_s: float

    @property
    def clock_hz(self) -> float:
        """Cycles per second of a core."""
        return self.peak_flops / (2 * self.matrix_cells * self.cores)

    @property
    def chip_config(self) -> dict[str, str]:
        """Options with which libtpu makes slices of the generation: without them each of two cores is a device."""
        return {"chip_config_name": "megacore"} if self.cores > 1 else {}


GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v4", "v4:2x2x1", 2, 4 * 128 * 128, 275e12, 1228e9, 512, 30.75, 300e9),
        Generation("v5e", "v5e:2x2", 1, 4 * 128 * 128, 197e12, 819e9, 32, 15.75, 200e9),
        Generation("v5p", "v5p:2x2x1", 2, 4 * 128 * 128, 459e12, 2765e9, 32, 95.74, 600e9),
        Generation("v6e", "v6e:2x2", 1, 4 * 256 * 256, 918e12, 1640e9, 32, 31.25, 400e9),
        Generation("v7x", "v7x:2x2x1", 1, 4 * 256 * 256, 1153.5e12, 3690e9, 32, 94.75, 300e9),
    )
}
