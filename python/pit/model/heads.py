"""What is read off a decoder: log-probs of the tokens of a packed row, and one scalar a leaf for reward models."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from pit.config import ModelConfig
from pit.model.axes import PARTITION
from pit.model.decoder import Decoder
from pit_kernels import leaf_scores, token_logprob


class RowReading(NamedTuple):
    """What a decoder says of each token of packed rows, given the token's own path.

    logp: log-prob of the token, nats at the temperature; exactly 0 where nothing precedes it.
    entropy: of the distribution it was drawn from, nats at the temperature; 0 in the same places.
    hidden: state that distribution is read off, after the final norm.
    valid: where there is one.
    """

    logp: Float32[Array, "B T"]
    entropy: Float32[Array, "B T"]
    hidden: Float[Array, "B T D"]
    valid: Bool[Array, "B T"]


def read_rows(
    model: Decoder,
    token: Int32[Array, "B T"],
    position: Int32[Array, "B T"],
    visible_until: Int32[Array, "B T"],
    previous: Int32[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> RowReading:
    """The reading of packed rows; what the caller leaves aside is not computed under jit."""
    hidden = model(token, position, visible_until)
    source = jnp.take_along_axis(hidden, previous[:, :, None], axis=1)
    index = jnp.arange(token.shape[1], dtype=jnp.int32)[None, :]
    valid = (visible_until > index) & (previous < index)
    normed = model.final_norm(source)
    result = token_logprob(
        normed.reshape(-1, normed.shape[-1]),
        model.table.astype(normed.dtype),
        token.reshape(-1),
        valid=valid.reshape(-1),
        temperature=temperature,
        logit_soft_cap=model.config.final_soft_cap,
        partition=PARTITION,
    )
    return RowReading(result.logp.reshape(token.shape), result.entropy.reshape(token.shape), normed, valid)


def row_logprobs(
    model: Decoder,
    token: Int32[Array, "B T"],
    position: Int32[Array, "B T"],
    visible_until: Int32[Array, "B T"],
    previous: Int32[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> Float32[Array, "B T"]:
    """Log-prob (nats, at the temperature) of each token given its own path; exactly 0 where nothing precedes it."""
    return read_rows(model, token, position, visible_until, previous, temperature=temperature).logp


class RewardModel(nnx.Module):
    """A decoder with a scalar head, read at the closing role token of each leaf."""

    def __init__(self, config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> None:
        self.decoder = Decoder(config, vocab_size, rngs)
        initial = jax.random.normal(rngs.params(), (config.width,), jnp.float32)
        self.score = nnx.Param(initial * jnp.float32(config.width**-0.5))

    def __call__(
        self,
        token: Int32[Array, "B T"],
        position: Int32[Array, "B T"],
        visible_until: Int32[Array, "B T"],
        leaf: Int32[Array, "G L 2"],
    ) -> Float32[Array, "G L"]:
        """Scores of the leaves, float32; 0 where a leaf is absent."""
        norm = self.decoder.final_norm
        return leaf_scores(
            self.decoder(token, position, visible_until),
            leaf,
            norm.scale[...],
            self.score[...],
            eps=norm.eps,
            offset_norm=norm.offset,
            partition=PARTITION,
        )
