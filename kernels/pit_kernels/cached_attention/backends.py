"""The backends of cached attention, best first."""

from pit_kernels.cached_attention import cpu, pallas_tpu, triton_gpu, xla

BACKENDS = (pallas_tpu.BACKEND, triton_gpu.BACKEND, cpu.BACKEND, xla.BACKEND)
