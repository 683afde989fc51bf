"""Heads of a decoder: log-probs of the tokens of packed rows, and one scalar per leaf for reward models."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32

from pit.config import ModelConfig
from pit.model.axes import PARTITION
from pit.model.decoder import Decoder
from pit_kernels import leaf_scores, token_logprob


class Predictions(NamedTuple):
    """Predictions of each token of packed rows from the tokens before it on its path.

    logp: log-prob of the token, nats at the temperature; exactly 0 where nothing precedes it.
    entropy: entropy of the predicted distribution, nats at the temperature; 0 in the same places.
    hidden: hidden state of the prediction, after the final norm.
    valid: whether there is a prediction.
    """

    logp: Float32[Array, "B T"]
    entropy: Float32[Array, "B T"]
    hidden: Float[Array, "B T D"]
    valid: Bool[Array, "B T"]


def predict(
    model: Decoder,
    token: Int32[Array, "B T"],
    position: Int32[Array, "B T"],
    visible_until: Int32[Array, "B T"],
    previous: Int32[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> Predictions:
    """Return the predictions of packed rows; fields that the caller does not use are not computed under jit."""
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
    return Predictions(result.logp.reshape(token.shape), result.entropy.reshape(token.shape), normed, valid)


def row_logprobs(
    model: Decoder,
    token: Int32[Array, "B T"],
    position: Int32[Array, "B T"],
    visible_until: Int32[Array, "B T"],
    previous: Int32[Array, "B T"],
    *,
    temperature: float = 1.0,
) -> Float32[Array, "B T"]:
    """Return the log-prob (nats, at the temperature) of each token; exactly 0 where nothing precedes it."""
    return predict(model, token, position, visible_until, previous, temperature=temperature).logp


def draw_head(key: Array, width: int) -> Float32[Array, " D"]:
    """Return an initial head: normal, of length 1 on average."""
    head: Array = jax.random.normal(key, (width,), jnp.float32) * jnp.float32(width**-0.5)
    return head


class RewardModel(nnx.Module):
    """A decoder with a scalar head, read at the last token of each leaf."""

    def __init__(self, config: ModelConfig, vocab_size: int, rngs: nnx.Rngs) -> None:
        self.decoder = Decoder(config, vocab_size, rngs)
        self.score = nnx.Param(draw_head(rngs.params(), config.width))

    def __call__(
        self,
        token: Int32[Array, "B T"],
        position: Int32[Array, "B T"],
        visible_until: Int32[Array, "B T"],
        leaf: Int32[Array, "G L 2"],
    ) -> Float32[Array, "G L"]:
        """Return the scores of the leaves, float32; 0 where a leaf is absent."""
        norm = self.decoder.final_norm
        return leaf_scores(
            self.decoder(token, position, visible_until),
            leaf,
            norm.scale[...].astype(jnp.float32),
            self.score[...],
            eps=norm.eps,
            offset_norm=norm.offset,
            partition=PARTITION,
        )
