"""The backends of three-way attention, best first."""

from pit_kernels.three_way_attention import cpu, pallas_tpu, triton_gpu, xla

BACKENDS = (pallas_tpu.BACKEND, triton_gpu.BACKEND, cpu.BACKEND, xla.BACKEND)
