"""The backends of the gap reward's leaf scores, best first."""

from pit_kernels.gap_reward import pallas_tpu, xla

BACKENDS = (pallas_tpu.BACKEND, xla.BACKEND)
