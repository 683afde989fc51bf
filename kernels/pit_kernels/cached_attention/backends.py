"""The backends of cached attention, best first."""

from pit_kernels.cached_attention import pallas_tpu, xla

BACKENDS = (pallas_tpu.BACKEND, xla.BACKEND)
