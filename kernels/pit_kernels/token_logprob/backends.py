"""The backends of token log-probabilities, best first."""

from pit_kernels.token_logprob import pallas_tpu, triton_gpu, xla

BACKENDS = (pallas_tpu.BACKEND, triton_gpu.BACKEND, xla.BACKEND)
