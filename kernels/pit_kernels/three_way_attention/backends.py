"""The backends of three-way attention, best first."""

from pit_kernels.three_way_attention import pallas_tpu, xla

BACKENDS = (pallas_tpu.BACKEND, xla.BACKEND)
