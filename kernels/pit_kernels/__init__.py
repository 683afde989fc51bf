"""The operations PIT's models are made of, each with a reference and the backends that exist for it.

The package stands alone: it imports nothing of `pit`. See kernels/README.md for the contracts.
"""

from pit_kernels.cached_attention.api import cached_attention
from pit_kernels.dispatch import UnsupportedImplementationError
from pit_kernels.gap_reward.api import centred_gap, leaf_scores, symmetric_gap
from pit_kernels.operations import unsupported_reason
from pit_kernels.partition import Partition
from pit_kernels.three_way_attention.api import three_way_attention
from pit_kernels.three_way_attention.autodiff import ATTENTION_RESULTS
from pit_kernels.token_logprob.api import TokenLogprob, token_logprob

__all__ = [
    "ATTENTION_RESULTS",
    "Partition",
    "TokenLogprob",
    "UnsupportedImplementationError",
    "cached_attention",
    "centred_gap",
    "leaf_scores",
    "symmetric_gap",
    "three_way_attention",
    "token_logprob",
    "unsupported_reason",
]
