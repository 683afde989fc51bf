"""The backends of token log-probabilities, best first."""

from pit_kernels.token_logprob import pallas_tpu, xla

BACKENDS = (pallas_tpu.BACKEND, xla.BACKEND)
